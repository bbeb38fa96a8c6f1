//! Messages and how long they may be.

use hickory_proto::op::{Message, MessageType};

/// The largest UDP answer, whatever a client offers (fits every path's MTU).
const MAX_UDP: u16 = 1232;
/// A client without EDNS.
const PLAIN_UDP: u16 = 512;
/// The shortest record, whose name is a pointer: more of them than fit are not even written down (bytes).
pub const LEAST_RECORD: usize = 12;

/// Reads a message whose counts can be true: room is made for as many entries as it claims to have.
pub fn message(bytes: &[u8]) -> Option<Message> {
    /// Identifier, flags and four counts; the shortest query (root, type, class) and record (and time to live, length).
    const HEADER: usize = 12;
    const QUERY: usize = 5;
    const RECORD: usize = 11;
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let least = count(4) * QUERY + (count(6) + count(8) + count(10)) * RECORD;
    if least > rest.len() { None } else { Message::from_vec(bytes).ok() }
}

/// Reads a datagram: the question, and how long its answer may be.
pub fn question(datagram: &[u8]) -> Option<(Message, u16)> {
    // What claims to be an answer is none of ours: two servers would answer each other for ever.
    let question = message(datagram).filter(|message| message.metadata.message_type == MessageType::Query)?;
    let limit = question.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP));
    Some((question, limit))
}

/// An answer of at most so many bytes. What comes besides the answers goes first; then as many answers are kept as
/// there is room for, and it is marked as cut short: whoever asks no second time, by TCP, has these.
pub fn bytes(mut answer: Message, limit: u16) -> Option<Vec<u8>> {
    let limit = usize::from(limit);
    let is_cut = answer.answers.len() > limit / LEAST_RECORD;
    answer.answers.truncate(limit / LEAST_RECORD);
    answer.additionals.truncate((limit / LEAST_RECORD).saturating_sub(answer.answers.len()));
    answer.metadata.truncation |= is_cut;
    let mut bytes = answer.to_vec().ok()?;
    if bytes.len() > limit && !answer.additionals.is_empty() {
        answer.additionals.clear();
        bytes = answer.to_vec().ok()?;
    }
    while bytes.len() > limit {
        if answer.answers.is_empty() {
            return answer.truncate().to_vec().ok();
        }
        // In proportion, so that a few rounds do; always fewer.
        let kept = (answer.answers.len() * limit / bytes.len()).min(answer.answers.len() - 1);
        answer.answers.truncate(kept);
        answer.metadata.truncation = true;
        bytes = answer.to_vec().ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn answer(count: u32, additionals: u32) -> Message {
        let name = Name::from_ascii("web.default.svc.cluster.local.").expect("a name");
        let mut answer = Message::response(7, hickory_proto::op::OpCode::Query);
        answer.add_query(Query::query(name.clone(), RecordType::A));
        let record =
            |number: u32| Record::from_rdata(name.clone(), 5, RData::A(Ipv4Addr::from(0x0af4_0000 + number).into()));
        answer.add_answers((0..count).map(record));
        answer.add_additionals((0..additionals).map(record));
        answer
    }

    #[test]
    fn n1_what_fits_of_an_answer_is_kept() {
        for (count, additionals, limit, kept, is_cut) in [
            (3, 3, 512, (3, 3), false),
            (29, 3, 512, (29, 0), false),
            (40, 0, 512, (29, 0), true),
            (5000, 0, 1232, (74, 0), true),
        ] {
            let bytes = bytes(answer(count, additionals), limit).expect("a message");
            let read = message(&bytes).expect("a message");
            assert!(bytes.len() <= usize::from(limit), "{count}: {}", bytes.len());
            assert!(!is_cut || bytes.len() + 2 * 16 > usize::from(limit), "{count}: {} of {limit}", bytes.len());
            assert_eq!((read.answers.len(), read.additionals.len()), kept, "{count}");
            assert_eq!(read.metadata.truncation, is_cut, "{count}");
        }
    }

    #[test]
    fn what_claims_to_be_an_answer_is_not_answered() {
        assert!(question(&answer(1, 0).to_vec().expect("a message")).is_none());
    }
}
