//! A name server of the outside world, for what the cluster's own does not know.

use std::fs::File;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, setns};

/// What every name of `outside.example` resolves to.
pub const ADDRESS: [u8; 4] = [192, 0, 2, 53];

/// A running upstream server; it ends with the test's process.
pub struct Upstream {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    /// Serves UDP on 127.0.0.53:53 in the network namespace of a process.
    pub fn in_namespace_of(pid: u32) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (shared, (tell, told)) = (asked.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            // Only this thread goes there.
            let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("a namespace");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root");
            let socket = UdpSocket::bind("127.0.0.53:53").expect("port 53");
            tell.send(()).expect("the test waits");
            let mut buffer = [0; 1500];
            while let Ok((read, client)) = socket.recv_from(&mut buffer) {
                if let Some((name, answer)) = answer(&buffer[..read]) {
                    shared.lock().expect("no panic").push(name);
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        told.recv().expect("the server listens");
        Self { asked }
    }

    /// The names that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// The name of the question and the answer: one address for A questions below `outside.example`, no such name else.
fn answer(question: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let name = labels.join(".");
    let known = name.ends_with("outside.example");
    let is_a = question.get(at..at + 2)? == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(known && is_a), 0, 0, 0, 0]);
    answer.extend(question.get(12..at + 4)?);
    if known && is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ADDRESS);
    }
    Some((name, answer))
}
