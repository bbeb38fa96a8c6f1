//! A few thousand damaged inputs of each target, the same ones every time: no panic, bounded memory (X3, X4).
//! `MAINSTAY_INPUTS=100000 MAINSTAY_INPUTS_FROM=7` tries more, and others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_runtime::fuzzing::{Mutator, Target};

use super::{TARGETS, target};

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

fn note(change: isize) {
    // A thread that ends has no counters any more, and needs none.
    let _ = NOW.try_with(|now| {
        now.set(now.get().saturating_add_signed(change));
        MOST.with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: everything is the system allocator's; counting touches only cells of the thread, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs one input; the most memory that was in use at one time meanwhile.
fn run(target: &Target, input: &[u8]) -> usize {
    let before = NOW.get();
    MOST.set(before);
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let most = MOST.get() - before;
    assert!(done.is_ok(), "{} panics at {}", target.name, input.escape_ascii());
    assert!(most <= target.memory, "{} takes {most} bytes of memory at {}", target.name, input.escape_ascii());
    most
}

fn try_damaged(name: &str, count: u64) {
    try_target(target(name).unwrap(), count);
}

fn try_target(target: &Target, count: u64) {
    let seeds = (target.seeds)();
    let mut most = seeds.iter().map(|seed| run(target, seed)).max().unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut mutator = Mutator::new(number("MAINSTAY_INPUTS_FROM").unwrap_or(0));
    for _ in 0..number("MAINSTAY_INPUTS").unwrap_or(count) {
        most = most.max(run(target, &mutator.damage(&seeds)));
    }
    println!("{}: at most {most} bytes", target.name);
}

#[test]
fn damaged_nfs_calls_x4() {
    try_damaged("nfs_server", 1500);
}

#[test]
fn damaged_nfs_replies_x4() {
    try_damaged("nfs_client", 4000);
}

#[test]
fn damaged_rpc_records_x4() {
    try_damaged("rpc", 10_000);
}

#[test]
fn damaged_image_layers_x3_x4() {
    try_damaged("image_layer", 1500);
}

#[test]
fn damaged_image_archives_x3_x4() {
    try_damaged("image_archive", 1000);
}

#[test]
fn damaged_answers_of_registries_x4() {
    try_damaged("registry", 5000);
}

#[test]
fn damaged_dns_questions_x4() {
    try_damaged("dns", 10_000);
}

#[test]
fn damaged_spdy_streams_x4() {
    try_damaged("spdy", 2000);
}

#[test]
fn damaged_websocket_messages_x4() {
    try_damaged("websocket", 3000);
}

#[test]
fn damaged_objects_patches_and_selectors_x4() {
    try_damaged("objects", 5000);
}

#[test]
fn damaged_expressions_x4() {
    try_damaged("expressions", 5000);
}

#[test]
fn damaged_definitions_and_their_objects_x4() {
    try_damaged("definitions", 2000);
}

#[test]
fn damaged_messages_and_what_is_written_as_one_x4() {
    try_damaged("messages", 4000);
}

/// Read by the server, which is nothing of the node's: counted here, where memory is.
#[test]
fn damaged_answers_of_webhooks_and_extension_servers_x4() {
    let (seeds, run) = (mainstay_server::fuzzing::seeds, mainstay_server::fuzzing::run);
    try_target(&Target { name: "answers", seeds, run, memory: 8 << 20 }, 3000);
}

#[test]
fn every_target_has_a_program_in_fuzz() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
