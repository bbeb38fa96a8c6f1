//! Golden frames, and the promise that no bytes harm the codec (X4).

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{Decoder, Encoder, Frame, FrameError, MAX_CONTROL_FRAME, MAX_PIECE};
use super::headers::Headers;

fn frames(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    for bytes in bytes.chunks(piece.max(1)) {
        decoder.feed(bytes);
        while let Some(frame) = decoder.next()? {
            out.push(frame);
        }
    }
    Ok(out)
}

#[test]
fn golden_frames() {
    let table: [(Frame, &[u8]); 6] = [
        (Frame::Reset { stream: 5, status: 3 }, &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 3]),
        (Frame::Ping { id: 7 }, &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]),
        (Frame::GoAway { last_stream: 9, status: 1 }, &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 1]),
        (Frame::WindowUpdate { stream: 1, delta: 0x1_0000 }, &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0, 0]),
        (
            Frame::Data { stream: 3, bytes: Bytes::from_static(b"hi"), fin: false },
            &[0, 0, 0, 3, 0, 0, 0, 2, b'h', b'i'],
        ),
        (Frame::Data { stream: 3, bytes: Bytes::new(), fin: true }, &[0, 0, 0, 3, 1, 0, 0, 0]),
    ];
    for (frame, bytes) in table {
        let mut out = BytesMut::new();
        Encoder::default().encode(&frame, &mut out);
        assert_eq!(out.as_ref(), bytes, "{frame:?}");
        assert_eq!(frames(bytes, bytes.len()), Ok(vec![frame]));
    }
}

#[test]
fn a_block_as_gos_zlib_compresses_it_is_read() {
    // SYN_STREAM 1 with `streamtype: error`, compressed at level 9 with the dictionary and a sync flush.
    let block = include_bytes!("testdata/streamtype_error.bin");
    let mut bytes = vec![0x80, 3, 0, 1, 0, 0, 0, 10 + block.len() as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(block);
    let headers = Headers(vec![("streamtype".to_owned(), "error".to_owned())]);
    assert_eq!(frames(&bytes, 5), Ok(vec![Frame::SynStream { stream: 1, headers, fin: false }]));
}

#[test]
fn limits_have_names_x4() {
    let huge = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    assert_eq!(frames(&huge, 8), Err(FrameError::TooLarge(0xff_ffff)));
    const { assert!(MAX_CONTROL_FRAME < 0xff_ffff) };
    assert_eq!(frames(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8), Err(FrameError::Version(2)));
    assert_eq!(frames(&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0], 8), Err(FrameError::Short(6)));
    assert_eq!(frames(&[0x80, 3, 0, 42, 0, 0, 0, 1, 9], 8), Ok(vec![Frame::Unknown { kind: 42 }]));
}

#[test]
fn a_huge_data_frame_comes_in_pieces() {
    let mut bytes = vec![0, 0, 0, 1, 1, 0x10, 0, 0];
    bytes.resize(8 + 0x10_0000, b'x');
    let pieces = frames(&bytes, 50_000).unwrap();
    let length = |frame: &Frame| if let Frame::Data { bytes, .. } = frame { bytes.len() } else { 0 };
    assert_eq!(pieces.iter().map(length).sum::<usize>(), 0x10_0000);
    assert!(pieces.iter().all(|piece| length(piece) <= MAX_PIECE));
    let ends: Vec<bool> = pieces.iter().map(|piece| matches!(piece, Frame::Data { fin: true, .. })).collect();
    assert!(ends.iter().rev().skip(1).all(|end| !end) && ends.last() == Some(&true));
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let headers = || proptest::collection::vec(("[a-z]{1,12}", ".{0,40}"), 0..5).prop_map(Headers);
    let stream = || 0..0x7fff_ffffu32;
    prop_oneof![
        (stream(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::SynStream {
            stream,
            headers,
            fin
        }),
        (stream(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::SynReply {
            stream,
            headers,
            fin
        }),
        (stream(), headers(), any::<bool>()).prop_map(|(stream, headers, fin)| Frame::Headers { stream, headers, fin }),
        (stream(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        (stream(), proptest::collection::vec(any::<u8>(), 0..100), any::<bool>())
            .prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes: bytes.into(), fin }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_never_panic_x4(bytes in proptest::collection::vec(any::<u8>(), 0..600),
        piece in 1usize..64) {
        let _ = frames(&bytes, piece);
    }

    #[test]
    fn broken_frames_never_panic_x4(list in proptest::collection::vec(any_frame(), 1..6),
        cut in any::<proptest::sample::Index>(), flip in any::<(proptest::sample::Index, u8)>()) {
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        list.iter().for_each(|frame| encoder.encode(frame, &mut bytes));
        let mut bytes = bytes.to_vec();
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let _ = frames(&bytes, 17);
    }

    #[test]
    fn frames_survive_the_way_there_and_back(list in proptest::collection::vec(any_frame(), 1..6)) {
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        list.iter().for_each(|frame| encoder.encode(frame, &mut bytes));
        // In one piece, so that data frames stay whole.
        prop_assert_eq!(frames(&bytes, bytes.len()).unwrap(), list);
    }
}
