//! From a profile to a BPF program, and its installation.
//!
//! ```text
//! arch? ── native ────── number above the last known? ── ENOSYS
//!   │                    └ binary search over ranges of numbers with one verdict ── verdict, or a look at arguments
//!   ├──── companion ──── the same for its numbers
//!   └──── any other ──── ENOSYS
//! ```
//! Every path ends in a RET, so parts are only ever put behind each other.

use std::collections::BTreeMap;
use std::io;

use super::profile::{Condition, Operator, Profile, Rule, Verdict};
use super::table::{self, Architecture};

/// The kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;
/// One instruction as it is kept in a file.
const INSTRUCTION_BYTES: usize = 8;

/// The flags of seccomp(2) that a profile may ask for.
pub const ALL_FLAGS: [(&str, u32); 3] =
    [("SECCOMP_FILTER_FLAG_TSYNC", 1), ("SECCOMP_FILTER_FLAG_LOG", 2), ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4)];

/// Where the number, the architecture and the arguments are in `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// From here on the numbers are those of x86-64's x32 ABI; no other architecture has any.
const X32: u32 = 0x4000_0000;

const UNKNOWN: Verdict = Verdict::errno(libc::ENOSYS as u16);

/// One BPF instruction; the kernel's `sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub value: u32,
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    flags: u32,
    pub(super) instructions: Vec<Instruction>,
}

impl Program {
    /// As it is kept in a file: the flags, then the instructions, in this machine's byte order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_ne_bytes().to_vec();
        for one in &self.instructions {
            bytes.extend(one.code.to_ne_bytes());
            bytes.extend([one.jump_true, one.jump_false]);
            bytes.extend(one.value.to_ne_bytes());
        }
        bytes
    }

    /// Reads it back; None where that is no program.
    pub fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let (flags, rest) = bytes.split_first_chunk::<4>()?;
        let (chunks, left) = rest.as_chunks::<INSTRUCTION_BYTES>();
        if !left.is_empty() || chunks.is_empty() || chunks.len() > MAX_INSTRUCTIONS {
            return None;
        }
        let instructions = chunks.iter().map(|[c0, c1, jump_true, jump_false, v0, v1, v2, v3]| Instruction {
            code: u16::from_ne_bytes([*c0, *c1]),
            jump_true: *jump_true,
            jump_false: *jump_false,
            value: u32::from_ne_bytes([*v0, *v1, *v2, *v3]),
        });
        Some(Program { flags: u32::from_ne_bytes(*flags), instructions: instructions.collect() })
    }

    /// Filters this thread's system calls, and those of what it executes, from now on. Needs CAP_SYS_ADMIN or
    /// no_new_privs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn install(&self) -> io::Result<()> {
        let mut filter: Vec<libc::sock_filter> = self
            .instructions
            .iter()
            .map(|one| libc::sock_filter { code: one.code, jt: one.jump_true, jf: one.jump_false, k: one.value })
            .collect();
        let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its instructions outlive the call, which only reads them.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Compiles a profile for this architecture and, where the profile names it, its companion.
///
/// # Errors
/// It is larger than what the kernel takes.
pub fn compile(profile: &Profile, native: Architecture) -> Result<Program, String> {
    let mut instructions = vec![load(ARCHITECTURE)];
    let mut architectures = vec![native];
    if let Some((name, companion)) = native.companion()
        && profile.architectures.iter().any(|asked| asked == name)
    {
        architectures.push(companion);
    }
    for architecture in architectures {
        let body = by_number(profile, architecture);
        // A jump that depends on something reaches 255 instructions, JUMP any.
        instructions.push(jump(JUMP_EQUAL, architecture.audit(), 1, 0));
        instructions.push(Instruction { code: JUMP, jump_true: 0, jump_false: 0, value: body.len() as u32 });
        instructions.extend(body);
    }
    instructions.push(end(UNKNOWN));
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(format!("it needs {} instructions; the kernel takes {MAX_INSTRUCTIONS}", instructions.len()));
    }
    Ok(Program { flags: profile.flags, instructions })
}

/// What is done about one system call: rules with conditions, in order, then the verdict where none of them holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Treatment<'a> {
    conditional: Vec<&'a Rule>,
    otherwise: Verdict,
}

fn by_number(profile: &Profile, architecture: Architecture) -> Vec<Instruction> {
    let plain = Treatment { conditional: Vec::new(), otherwise: profile.default };
    let mut treatments: BTreeMap<u32, Treatment> = BTreeMap::new();
    for rule in &profile.rules {
        for name in &rule.names {
            // A name that this architecture does not have is for another one.
            let Some(number) = table::find(name).and_then(|call| call.number(architecture)) else { continue };
            let treatment = treatments.entry(number).or_insert_with(|| plain.clone());
            if rule.conditions.is_empty() {
                treatment.otherwise = rule.verdict;
            } else {
                treatment.conditional.push(rule);
            }
        }
    }
    let last = table::last(architecture);
    let mut ranges: Vec<(u32, Treatment)> = Vec::new();
    for number in 0..=last {
        let treatment = treatments.get(&number).unwrap_or(&plain);
        if ranges.last().is_none_or(|(_, before)| before != treatment) {
            ranges.push((number, treatment.clone()));
        }
    }
    // Where everything is allowed, so is what is newer.
    let newer = if profile.default == Verdict::ALLOW { Verdict::ALLOW } else { UNKNOWN };
    ranges.push((last + 1, Treatment { conditional: Vec::new(), otherwise: newer }));
    if newer != UNKNOWN {
        // They are calls that have another number as well, by which the profile may deny them.
        ranges.push((X32, Treatment { conditional: Vec::new(), otherwise: UNKNOWN }));
    }
    let mut body = vec![load(NUMBER)];
    body.extend(search(&ranges));
    body
}

/// Binary search for the last range that begins at or below the number.
fn search(ranges: &[(u32, Treatment)]) -> Vec<Instruction> {
    if let [(_, only)] = ranges {
        return treat(only);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (Some((border, _)), low) = (high.first(), search(low)) else { return Vec::new() };
    let mut all = match u8::try_from(low.len()) {
        Ok(length) => vec![jump(JUMP_GREATER_OR_EQUAL, *border, length, 0)],
        Err(_) => vec![
            jump(JUMP_GREATER_OR_EQUAL, *border, 0, 1),
            Instruction { code: JUMP, jump_true: 0, jump_false: 0, value: low.len() as u32 },
        ],
    };
    all.extend(low);
    all.extend(search(high));
    all
}

fn treat(treatment: &Treatment) -> Vec<Instruction> {
    let mut all = Vec::new();
    for rule in &treatment.conditional {
        // From the last condition to the first, so that each knows how far it is to where the rule does not hold.
        let mut block = vec![end(rule.verdict)];
        for condition in rule.conditions.iter().rev() {
            let mut checked = check(condition, block.len() as u8);
            checked.extend(block);
            block = checked;
        }
        all.extend(block);
    }
    all.push(end(treatment.otherwise));
    all
}

/// Goes on behind itself where the condition holds, else skips `rest` more instructions. Arguments have 64 bits, BPF's
/// words 32.
fn check(condition: &Condition, rest: u8) -> Vec<Instruction> {
    let place = ARGUMENTS + 8 * condition.index;
    let (low, high) = if cfg!(target_endian = "little") { (place, place + 4) } else { (place + 4, place) };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (value_high, value_low) = halves(condition.value);
    // The targets of the jumps, counted from each instruction: `yes` and `no` are behind the last one.
    match condition.op {
        Operator::Equal => {
            vec![load(high), jump(JUMP_EQUAL, value_high, 0, 2 + rest), load(low), jump(JUMP_EQUAL, value_low, 0, rest)]
        }
        Operator::NotEqual => {
            vec![load(high), jump(JUMP_EQUAL, value_high, 0, 2), load(low), jump(JUMP_EQUAL, value_low, rest, 0)]
        }
        Operator::MaskedEqual => {
            let (two_high, two_low) = halves(condition.value_two);
            let and = |mask| Instruction { code: AND, jump_true: 0, jump_false: 0, value: mask };
            vec![
                load(high),
                and(value_high),
                jump(JUMP_EQUAL, two_high, 0, 3 + rest),
                load(low),
                and(value_low),
                jump(JUMP_EQUAL, two_low, 0, rest),
            ]
        }
        Operator::Greater | Operator::GreaterOrEqual => {
            let code = if condition.op == Operator::Greater { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
            vec![
                load(high),
                jump(JUMP_GREATER, value_high, 3, 0),
                jump(JUMP_EQUAL, value_high, 0, 2 + rest),
                load(low),
                jump(code, value_low, 0, rest),
            ]
        }
        Operator::Less | Operator::LessOrEqual => {
            let code = if condition.op == Operator::Less { JUMP_GREATER_OR_EQUAL } else { JUMP_GREATER };
            vec![
                load(high),
                jump(JUMP_GREATER, value_high, 3 + rest, 0),
                jump(JUMP_EQUAL, value_high, 0, 2),
                load(low),
                jump(code, value_low, rest, 0),
            ]
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, value: offset }
}

fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

fn end(verdict: Verdict) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, value: verdict.0 }
}
