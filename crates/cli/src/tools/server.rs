//! The demonstration's web server: who am I, and how often was I asked, kept on the volume.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(5);
/// The longest request head that is read.
const MAX_HEAD: u64 = 16 << 10;

/// Serves until it is killed. `/` counts a visit; `/healthz` does not.
pub fn serve(data: &Path, port: u16) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("listening on port {port}"))?;
    end_on_sigterm()?;
    println!("listening on port {port}, counter in {}", data.join("visits").display());
    for stream in listener.incoming() {
        // One at a time: the counter has one writer, and a broken client is its own trouble.
        if let Err(error) = stream.map_err(Into::into).and_then(|stream| answer(&stream, data)) {
            eprintln!("{error:#}");
        }
    }
    Ok(())
}

/// The first process of a container ends on SIGTERM only if it asks for that. The counter needs no farewell: every
/// visit is on disk before it is answered.
fn end_on_sigterm() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut terminate =
        runtime.block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) })?;
    std::thread::spawn(move || {
        runtime.block_on(terminate.recv());
        std::process::exit(0);
    });
    Ok(())
}

fn answer(mut stream: &TcpStream, data: &Path) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut lines = BufReader::new(stream.take(MAX_HEAD)).lines();
    let request = lines.next().context("an empty request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split_whitespace().nth(1).unwrap_or("");
    let (status, body) = match path {
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/" => {
            let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let pod = std::env::var("POD_NAME").unwrap_or_else(|_| hostname.trim().to_owned());
            ("200 OK", format!("pod {pod} host {} visits {}\n", hostname.trim(), count(data)?))
        }
        _ => ("404 Not Found", "not found\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    Ok(())
}

/// One visit more, on disk before the answer is given.
fn count(data: &Path) -> Result<u64> {
    let path = data.join("visits");
    let before: u64 = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} does not hold a number", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let next = data.join("visits.new");
    let mut file = fs::File::create(&next).with_context(|| format!("writing {}", next.display()))?;
    writeln!(file, "{}", before + 1)?;
    file.sync_all()?;
    fs::rename(&next, &path)?;
    fs::File::open(data)?.sync_all()?;
    Ok(before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_counted_on_disk() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("mainstay-visits-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        assert_eq!((count(&folder)?, count(&folder)?), (1, 2));
        fs::write(folder.join("visits"), "many")?;
        assert!(count(&folder).is_err());
        Ok(fs::remove_dir_all(&folder)?)
    }
}
