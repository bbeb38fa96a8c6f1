//! `mainstay nfs-server`: exports folders of this machine over NFSv3.

use anyhow::Result;
use mainstay_cli::args::NfsServerArgs;
use mainstay_nfs::server::{self, ServerConfig};

/// `mainstay nfs-server`.
pub fn run(args: &NfsServerArgs) -> Result<()> {
    crate::need_root("mainstay nfs-server")?;
    crate::up::log_to_stderr();
    let exports =
        args.exports.iter().map(|export| export.parse().map_err(anyhow::Error::msg)).collect::<Result<Vec<_>>>()?;
    let listening = server::listen(&ServerConfig {
        exports,
        listen: args.listen,
        portmapper: !args.no_portmapper,
        state_dir: args.state_dir.clone(),
    })?;
    let exports = if args.exports.len() == 1 { "export" } else { "exports" };
    say!("mainstay: NFS ready    {}   {} {exports}", listening.address, args.exports.len());
    if !listening.has_portmapper() && !args.no_portmapper {
        say!("mainstay: port 111 is taken: clients mount with -o port={0},mountport={0}", listening.address.port());
    }
    Ok(listening.serve()?)
}
