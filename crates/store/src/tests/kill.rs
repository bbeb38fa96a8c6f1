//! kill -9 of a process that writes: what it was told is on disk is there (A2).

use super::put;
use crate::{Options, Store};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const FOLDER: &str = "MAINSTAY_TEST_STORE_FOLDER";

/// The process that is killed: this test binary again, told so by the environment; without it there is nothing to do.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let store = Store::open(folder, Options::default()).unwrap();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let key = format!("k{}", next.fetch_add(1, Ordering::Relaxed));
                    let done = store.commit_blocking(put(&key, &key)).unwrap();
                    println!("\nacknowledged {key} {}", done.last);
                }
            });
        }
    });
}

#[test]
fn a_killed_writer_has_lost_nothing_that_was_acknowledged_a2() {
    let folder = tempfile::tempdir().unwrap();
    for kill_after in [1, 100, 300] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::kill::child", "--nocapture"])
            .env(FOLDER, folder.path().join(kill_after.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let acknowledged = |line: String| {
            let mut words = line.strip_prefix("acknowledged ")?.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?.parse::<u64>().ok()?))
        };
        let mut told: Vec<_> = lines.by_ref().filter_map(acknowledged).take(kill_after).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // The last line may be cut in its number; its key is then still an acknowledged one.
        told.extend(lines.filter_map(acknowledged));
        assert!(told.len() >= kill_after);
        let store = Store::open(folder.path().join(kill_after.to_string()), Options::inline()).unwrap();
        for (key, revision) in told {
            assert_eq!(store.get(key.as_bytes()).map(|entry| entry.value), Some(key.clone().into()), "{key} is lost");
            assert!(store.revision().0 >= revision, "the revision went back (A3)");
        }
    }
}
