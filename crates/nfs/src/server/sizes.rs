//! The program by which a provisioner gives a folder a size ([`super::limits`]). Only root of a machine that the export
//! trusts may; whoever may read a folder may ask for its size.

use super::call::{Asked, Fault};
use crate::protocol::{sizes, status};
use crate::rpc::{self, Refusal};
use crate::xdr::{Reader, Writer};

/// The program's procedures.
pub fn sizes(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Writer {
    let call = asked.call;
    let mut reply = rpc::accepted(call.xid);
    let begin = reply.0.len();
    reply.u32(status::OK);
    let done = match call.procedure {
        sizes::NULL => return rpc::accepted(call.xid),
        sizes::SET => set(asked, arguments),
        sizes::GET => get(asked, arguments, &mut reply),
        _ => return rpc::refused(call.xid, Refusal::ProcedureUnavailable),
    };
    match done {
        Ok(()) => reply,
        Err(Fault::Garbage) => rpc::refused(call.xid, Refusal::GarbageArguments),
        Err(Fault::Status(status)) => {
            reply.0.truncate(begin);
            reply.u32(status);
            reply
        }
    }
}

fn set(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Result<(), Fault> {
    let folder = asked.named(arguments)?;
    let bytes = arguments.u64()?;
    let root = asked.call.credentials.as_ref().is_some_and(|who| who.uid == 0);
    if !root || !folder.export.trusts(asked.client) {
        return Err(Fault::Status(status::PERM));
    }
    folder.must_be_dir()?;
    if folder.export.read_only {
        return Err(Fault::Status(status::ROFS));
    }
    // A limit inside of another would count the same bytes twice.
    if folder.limit.as_ref().is_some_and(|limit| limit.root != (folder.stat.st_dev, folder.stat.st_ino)) {
        return Err(Fault::Status(status::INVAL));
    }
    asked.server.limits.set(folder.export, &folder.fd, &folder.stat, bytes)
}

fn get(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let folder = asked.named(arguments)?;
    let (bytes, used) = folder.limit.as_ref().map(|limit| limit.usage()).ok_or(Fault::Status(status::NOENT))?;
    reply.u64(bytes).u64(used);
    Ok(())
}
