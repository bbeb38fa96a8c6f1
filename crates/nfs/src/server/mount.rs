//! The mount protocol (who may have which export's first handle) and a port mapper that knows this server only.

use std::ffi::OsStr;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;

use super::call::{Asked, Fault};
use super::export::Export;
use super::limits::Limit;
use crate::protocol::{self, MAX_PATH, PORTMAP, PORTMAP_VERSION, V3, status};
use crate::rpc::{self, Refusal};
use crate::xdr::{Reader, Writer};
use mainstay_runtime::safe_path;

const NULL: u32 = 0;
const TCP: u32 = 6;

/// The mount protocol's procedures. Nobody is remembered: DUMP is empty.
pub fn mount(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Writer {
    const MNT: u32 = 1;
    const DUMP: u32 = 2;
    const UMNT: u32 = 3;
    const UMNTALL: u32 = 4;
    const EXPORT: u32 = 5;
    /// AUTH_SYS, AUTH_NONE.
    const FLAVORS: [u32; 2] = [1, 0];
    let call = asked.call;
    let mut reply = rpc::accepted(call.xid);
    match call.procedure {
        NULL | UMNT | UMNTALL => {}
        MNT if call.version != V3 => return rpc::refused(call.xid, Refusal::ProgramMismatch(V3, V3)),
        MNT => match first_handle(asked, arguments) {
            Ok(handle) => {
                reply.u32(status::OK).opaque(&handle).u32(FLAVORS.len() as u32);
                FLAVORS.iter().for_each(|flavor| {
                    reply.u32(*flavor);
                });
            }
            Err(Fault::Garbage) => return rpc::refused(call.xid, Refusal::GarbageArguments),
            Err(Fault::Status(status)) => {
                reply.u32(status);
            }
        },
        DUMP => {
            reply.bool(false);
        }
        EXPORT => {
            for export in asked.server.exports.iter().filter(|export| export.admits(asked.client.address)) {
                reply.bool(true).opaque(export.path.as_os_str().as_bytes()).bool(false);
            }
            reply.bool(false);
        }
        _ => return rpc::refused(call.xid, Refusal::ProcedureUnavailable),
    }
    reply
}

/// MNT: an export, or a folder in it.
fn first_handle(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Result<Vec<u8>, Fault> {
    let path = arguments.opaque(MAX_PATH)?;
    if path.contains(&0) {
        return Err(Fault::Status(status::INVAL));
    }
    let path = Path::new(OsStr::from_bytes(path));
    let holds = |export: &&Export| export.relative(path).is_some();
    let export = asked.server.exports.iter().filter(holds).max_by_key(|export| export.path.as_os_str().len());
    let export = export.ok_or(Fault::Status(status::NOENT))?;
    if !export.admits(asked.client.address) {
        return Err(Fault::Status(status::ACCES));
    }
    let inside = export.relative(path).filter(|inside| !inside.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = safe_path::open_strict(&export.root, inside, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let limit = limit_of(asked, export, inside)?;
    Ok(asked.server.handle_of(export, limit.as_deref(), &dir)?)
}

/// The limit of a folder that is named by its path: it may begin at any folder on the way.
fn limit_of(asked: &Asked<'_>, export: &Export, inside: &Path) -> Result<Option<Arc<Limit>>, Fault> {
    let ways: Vec<&Path> =
        inside.ancestors().map(|way| if way.as_os_str().is_empty() { Path::new(".") } else { way }).collect();
    for way in ways {
        let dir = safe_path::open_strict(&export.root, way, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        if let Some(limit) = asked.server.limits.at(&dir, &nix::sys::stat::fstat(dir.as_raw_fd())?) {
            return Ok(Some(limit));
        }
    }
    Ok(None)
}

/// The port mapper's procedures, version 2.
pub fn portmap(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Writer {
    const GETPORT: u32 = 3;
    const DUMP: u32 = 4;
    let call = asked.call;
    if call.version != PORTMAP_VERSION {
        return rpc::refused(call.xid, Refusal::ProgramMismatch(PORTMAP_VERSION, PORTMAP_VERSION));
    }
    let port = u32::from(asked.server.port);
    let served = [
        (PORTMAP, PORTMAP_VERSION, u32::from(protocol::PORTMAP_PORT)),
        (protocol::MOUNT, V3, port),
        (protocol::NFS, V3, port),
    ];
    let mut reply = rpc::accepted(call.xid);
    match call.procedure {
        NULL => {}
        GETPORT => {
            let mut words = || Ok::<_, crate::xdr::Garbage>((arguments.u32()?, arguments.u32()?, arguments.u32()?));
            let Ok((program, version, transport)) = words() else {
                return rpc::refused(call.xid, Refusal::GarbageArguments);
            };
            let found = served.iter().find(|(p, v, _)| *p == program && *v == version && transport == TCP);
            reply.u32(found.map_or(0, |(.., port)| *port));
        }
        DUMP => {
            for (program, version, port) in served {
                reply.bool(true).u32(program).u32(version).u32(TCP).u32(port);
            }
            reply.bool(false);
        }
        _ => return rpc::refused(call.xid, Refusal::ProcedureUnavailable),
    }
    reply
}
