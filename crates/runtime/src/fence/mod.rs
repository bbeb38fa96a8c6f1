//! The deadline at which supervisors end their containers by themselves (S13).
//!
//! One page, `<root>/renewals`: the agent writes when its node's lease was renewed, every supervisor with a deadline
//! has the page mapped and locked in memory, and looks at it when its deadline has come. So a renewal is one small
//! write, whatever the number of containers, and a supervisor sleeps until it may have to act. A guard has a thread of
//! its own, that waits for no disk: the one that relays output may be stuck in a log.
//!
//! A container may end by itself before its deadline, and its supervisor with it, while something that it wrote is
//! still on its way to another machine. So what a pod with a deadline has mounted from there has the deadline too
//! ([`Fence`]), whoever else is left: the client's process, or one beside the kernel's client.
//!
//! All times are of CLOCK_BOOTTIME, which goes on in suspend and is set by nobody. An agent that is frozen, hung or
//! dead moves nothing; one that was killed and began anew goes on writing.
//!
//! ```text
//! sent          last        of the newest renewal that was acknowledged: the deadline is so many seconds later
//! acknowledged  since       of the first one of the row of renewals without a gap: a row that began after a deadline
//! says
//!                           nothing about it, however late the supervisor comes to look (the machine stood still)
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

mod renewals;

pub use renewals::Renewals;

use crate::cgroups::Cgroups;
use crate::layout::DeadlineConfig;
use crate::safe_path::mounts;
use crate::shim::process;
use crate::spec::Deadline;

/// The page's length. The four words, then the boot that they are of.
const PAGE: usize = 4096;
const WORDS: usize = 4;
const BOOT_AT: u64 = 8 * WORDS as u64;
/// Mixed into the check word, so that a page of zeros is not taken for one that was written.
const MARK: u64 = 0x6d61_696e_7374_6179;
/// How often a page that is being written is read again.
const READS: usize = 1000;
/// After a container was killed at its deadline, it is killed again so often until it is gone.
const AGAIN: Duration = Duration::from_millis(100);
/// A kernel that does not let a file system go keeps nobody longer than this.
const CUT_OFF: Duration = Duration::from_secs(10);
/// A guard needs little.
const STACK: usize = 128 << 10;

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn words(known: Renewals) -> [u64; WORDS] {
    let (last, since) = (nanos(known.last), nanos(known.since));
    [last, since, last ^ since.rotate_left(32) ^ MARK, 0]
}

fn of_words([last, since, check, _]: [u64; WORDS]) -> Option<Renewals> {
    let known = Renewals { last: Duration::from_nanos(last), since: Duration::from_nanos(since) };
    (last ^ since.rotate_left(32) ^ MARK == check).then_some(known)
}

/// The agent's end of the page.
pub struct Page {
    file: File,
    known: Mutex<Renewals>,
}

impl Page {
    /// Opens the page, or makes it. What an earlier boot left is forgotten: nothing of then runs.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
        let mut page = vec![0; PAGE];
        let length = file.read_at(&mut page, 0)?;
        let known = page.get(BOOT_AT as usize..).filter(|rest| length == PAGE && rest.starts_with(&boot));
        let known = known.and_then(|_| of_words(words_of(&page)));
        let page = Self { file, known: Mutex::new(known.unwrap_or_default()) };
        if known.is_none() {
            let mut fresh = vec![0; PAGE];
            let words = words(Renewals::default()).into_iter().flat_map(u64::to_ne_bytes);
            let bytes = words.chain(boot).take(PAGE);
            fresh.iter_mut().zip(bytes).for_each(|(at, byte)| *at = byte);
            page.file.write_all_at(&fresh, 0)?;
        }
        Ok(page)
    }

    /// What was written last.
    pub fn read(&self) -> Renewals {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what becomes of it. By a system call: a full disk is an error, not a signal.
    pub fn write(&self, change: impl FnOnce(Renewals) -> Renewals) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = change(*known);
        let bytes: Vec<u8> = words(new).into_iter().flat_map(u64::to_ne_bytes).collect();
        self.file.write_all_at(&bytes, 0)?;
        *known = new;
        Ok(())
    }
}

fn words_of(page: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(page.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

/// A supervisor's end of the page, in memory.
struct View(NonNull<AtomicU64>);

// SAFETY: the page is only read, by atomic loads, and stays mapped until the view is dropped.
unsafe impl Send for View {}
// SAFETY: likewise.
unsafe impl Sync for View {}

impl View {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() < PAGE as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping of a file that has a page; nobody shortens it.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping of above. Where it cannot be locked it is read all the same, from a disk that works.
        unsafe { libc::mlock(address, PAGE) };
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// `None` where the page is not readable as one.
    fn read(&self) -> Option<Renewals> {
        (0..READS).find_map(|_| {
            let mut words = [0; WORDS];
            for (index, word) in words.iter_mut().enumerate() {
                // SAFETY: within the page; the words are aligned, since it is.
                *word = unsafe { self.0.add(index).as_ref() }.load(Ordering::Acquire);
            }
            of_words(words)
        })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` and is used by nobody else.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// A deadline and where its renewals are: what a process is given that stops by itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fence {
    /// The page of renewals.
    pub renewals: PathBuf,
    /// After how many seconds without one; and the row of them to which it belongs when it begins.
    pub of: Deadline,
}

impl Fence {
    /// The deadline in memory, from now on.
    ///
    /// # Errors
    /// In words: it has passed already, or renewals began anew since the deadline was made, or the page cannot be read.
    pub fn watch(&self) -> Result<Watched, String> {
        let Deadline { seconds, since } = self.of;
        let path = self.renewals.display();
        let view = View::open(&self.renewals).map_err(|error| format!("cannot open {path}: {error}"))?;
        let known = view.read().ok_or_else(|| format!("{path} is not readable"))?;
        let at = known.deadline(seconds);
        if known.since.is_zero() || at <= boottime() {
            return Err(format!("the node has not renewed its lease for {seconds} s"));
        }
        if known.since != since {
            return Err("the node's lease was renewed anew meanwhile".to_owned());
        }
        Ok(Watched { view, seconds, at: AtomicU64::new(nanos(at)) })
    }
}

/// A deadline in memory. Once it has passed it has for ever, whatever is renewed later.
pub struct Watched {
    view: View,
    seconds: u32,
    /// Nanoseconds; moved by whoever looks first when it has come.
    at: AtomicU64,
}

impl Watched {
    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        let at = Duration::from_nanos(self.at.load(Ordering::SeqCst));
        let now = boottime();
        if now < at {
            return false;
        }
        let moved = self.view.read().and_then(|known| known.moved(at, self.seconds, now));
        if let Some(later) = moved {
            self.at.fetch_max(nanos(later), Ordering::SeqCst);
        }
        moved.is_none()
    }

    /// Sleeps until it may have passed, and no longer than until `beside` is readable.
    pub(crate) fn sleep_beside(&self, beside: &OwnedFd) {
        sleep_beside(Duration::from_nanos(self.at.load(Ordering::SeqCst)), beside);
    }

    /// Returns when it has passed.
    pub fn wait(&self) {
        while !self.has_passed() {
            sleep_until(Duration::from_nanos(self.at.load(Ordering::SeqCst)));
        }
    }
}

/// Sleeps until a time of [`boottime`]; may wake early. A machine that was suspended meanwhile wakes it at once.
fn sleep_until(at: Duration) {
    let time = timespec(at);
    // SAFETY: one valid timespec; the rest that is left is not asked for.
    unsafe { libc::clock_nanosleep(libc::CLOCK_BOOTTIME, libc::TIMER_ABSTIME, &raw const time, std::ptr::null_mut()) };
}

/// As [`sleep_until`], and no longer than until `beside` is readable.
fn sleep_beside(at: Duration, beside: &OwnedFd) {
    let time = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(at) };
    // SAFETY: the timer's descriptor is made here, and closed by its owner; the time and the two entries outlive the
    // calls.
    unsafe {
        let timer = libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC);
        if timer < 0 {
            return std::thread::sleep(AGAIN);
        }
        let timer = OwnedFd::from_raw_fd(timer);
        if libc::timerfd_settime(timer.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const time, std::ptr::null_mut()) != 0
        {
            return std::thread::sleep(AGAIN);
        }
        let entry = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut polled = [entry(&timer), entry(beside)];
        libc::poll(polled.as_mut_ptr(), 2, -1);
    }
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Sees to it that a container ends at its deadline.
pub struct Guard(Arc<Fenced>);

/// A deadline, and how far its guard is once it has passed.
struct Fenced {
    deadline: Watched,
    is_cut_off: Mutex<bool>,
    cut_off: Condvar,
}

impl Guard {
    /// Begins, before the container's program runs. The container also ends when the process of the pidfd `sentinel`
    /// does.
    ///
    /// # Errors
    /// In words: the deadline has passed already, or there is no way to watch it.
    pub fn begin(config: &DeadlineConfig, cgroups: &Cgroups, cgroup: &str, sentinel: OwnedFd) -> Result<Self, String> {
        let deadline = config.fence.watch()?;
        let mounts = config.mounts.clone();
        let fenced = Arc::new(Fenced { deadline, is_cut_off: Mutex::new(false), cut_off: Condvar::new() });
        let (said, cgroups, cgroup) = (fenced.clone(), cgroups.clone(), cgroup.to_owned());
        let guard = std::thread::Builder::new().name("deadline".to_owned()).stack_size(STACK).spawn(move || {
            while !said.deadline.has_passed() {
                if process::has_ended(sentinel.as_raw_fd()) {
                    cgroups.kill(&cgroup);
                    std::thread::sleep(AGAIN);
                } else {
                    said.deadline.sleep_beside(&sentinel);
                }
            }
            cgroups.kill(&cgroup);
            // What was written and has not arrived must not arrive when another machine has the volume.
            mounts::cut_off(&mounts);
            *said.is_cut_off.lock().unwrap_or_else(PoisonError::into_inner) = true;
            said.cut_off.notify_all();
            loop {
                cgroups.kill(&cgroup);
                std::thread::sleep(AGAIN);
            }
        });
        guard.map(|_| Self(fenced)).map_err(|error| format!("cannot watch the deadline: {error}"))
    }

    /// Whether the deadline has passed, and the container was ended by it. Returns when its file systems are cut off,
    /// or after [`CUT_OFF`]: a container that ends is started again, and must not lose what was mounted anew for it.
    pub fn has_fenced(&self) -> bool {
        // Not whether the guard has begun: the sentinel may have been faster.
        if !self.0.deadline.has_passed() {
            return false;
        }
        let is_cut_off = self.0.is_cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.cut_off.wait_timeout_while(is_cut_off, CUT_OFF, |is_cut_off| !*is_cut_off));
        true
    }
}

/// Ends a container whose deadline has passed, and goes on until the process of the pidfd `supervisor` has ended too,
/// which may be stopped, or stuck. It cuts nothing off: that is the guard's, or of whoever has the deadline of a mount;
/// and here it might come when something is already mounted anew.
pub(crate) fn enforce(supervisor: &OwnedFd, cgroups: &Cgroups, cgroup: &str) {
    while !process::has_ended(supervisor.as_raw_fd()) {
        cgroups.kill(cgroup);
        std::thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = at(40);

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn s13_what_an_agent_wrote_is_read_by_supervisors_and_by_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("renewals");
        let page = Page::open(&path).unwrap();
        let view = View::open(&path).unwrap();
        assert_eq!((page.read(), view.read()), (Renewals::default(), Some(Renewals::default())));
        let begin = |since| Fence { renewals: path.clone(), of: Deadline { seconds: 40, since } }.watch();
        assert!(begin(at(0)).is_err_and(|why| why.contains("has not renewed")));
        let now = boottime();
        page.write(|known| known.renewed(now, now, LEASE)).unwrap();
        let known = Renewals { last: now, since: now };
        assert_eq!((page.read(), view.read()), (known, Some(known)));
        assert!(begin(now).is_ok_and(|deadline| deadline.at.into_inner() == nanos(now + LEASE)));
        assert!(begin(at(1)).is_err_and(|why| why.contains("renewed anew")), "the pod was asked for before a gap");
        drop(page);
        assert_eq!(Page::open(&path).unwrap().read(), known);

        // Of another boot, or damaged: nothing is known, and what is mapped is the same page.
        for (offset, byte) in [(BOOT_AT, b'x'), (3, 0xff)] {
            OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[byte], offset).unwrap();
            assert_eq!(Page::open(&path).unwrap().read(), Renewals::default());
            assert_eq!(view.read(), Some(Renewals::default()));
        }
    }

    #[test]
    fn s13_a_deadline_that_has_passed_stays_so_and_one_that_was_moved_in_time_moves() {
        let folder = tempfile::tempdir().unwrap();
        let renewals = folder.path().join("renewals");
        let page = Page::open(&renewals).unwrap();
        let begin = boottime();
        page.write(|_| Renewals { last: begin, since: begin }).unwrap();
        let fence = Fence { renewals, of: Deadline { seconds: 40, since: begin } };
        let [moved, passed] = [fence.watch().unwrap(), fence.watch().unwrap()];
        assert!(!moved.has_passed() && !passed.has_passed());
        // As if 50 s had passed, with a renewal 10 s before the end, or after it.
        let earlier = |by: u64| begin.saturating_sub(at(by));
        for watched in [&moved, &passed] {
            watched.at.store(nanos(earlier(10)), Ordering::SeqCst);
        }
        page.write(|_| Renewals { last: earlier(20), since: earlier(49) }).unwrap();
        assert!(!moved.has_passed());
        assert_eq!(moved.at.load(Ordering::SeqCst), nanos(earlier(20) + LEASE));
        page.write(|_| Renewals { last: begin, since: earlier(9) }).unwrap();
        assert!(passed.has_passed(), "the row began after it");
        page.write(|known| known.renewed(begin, begin, LEASE)).unwrap();
        assert!(passed.has_passed() && !moved.has_passed());
    }

    #[test]
    fn s13_a_page_that_is_half_written_is_not_believed() {
        let words = words(Renewals { last: at(5), since: at(3) });
        assert_eq!(of_words(words), Some(Renewals { last: at(5), since: at(3) }));
        assert_eq!(of_words([words[0] + 1, words[1], words[2], 0]), None);
        assert_eq!(of_words([0; WORDS]), None);
    }
}
