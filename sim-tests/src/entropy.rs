//! Randomness that follows from the seed and time that follows from the simulation, where code asks the operating system.
//!
//! Raft and turmoil take a seed, but `HashMap`, tokio (which wakes a random shard of a `watch`) and whatever else calls
//! `getrandom` do not. This module defines that C function for the whole binary: on a thread given a seed by [`on_thread`]
//! it continues that seed's sequence; on every other thread it asks the kernel, as before. `HashMap` draws its keys once a
//! thread and counts up from there, so every simulation runs on a thread of its own.
//!
//! Wall time likewise: what reads the system's clock on such a thread (a client stamping its session, hyper dating a
//! response) sees [`EPOCH`] and what the simulation added by [`set_elapsed`].
//!
//! What this cannot reach: addresses in memory, the monotonic clock (under tokio's paused clock only
//! the differences matter, and tokio makes them), and threads a dependency starts. The simulated binary starts none.
use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static SEQUENCE: Cell<Option<SmallRng>> = const { Cell::new(None) };
    static WALL: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// When every simulation begins, since 1970: 2026-01-01T00:00:00Z.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// Moves the wall time of this thread to so long after [`EPOCH`]. Call it on a thread of [`on_thread`].
pub fn set_elapsed(elapsed: Duration) {
    WALL.set(Some(EPOCH + elapsed));
}

/// How long after [`EPOCH`] the wall time of this thread is; zero on a thread that has none of its own.
pub fn elapsed() -> Duration {
    WALL.get().map_or(Duration::ZERO, |wall| wall.saturating_sub(EPOCH))
}

/// Runs `work` on a fresh thread on which all randomness follows from `seed`, and returns what it returned.
///
/// # Panics
/// Where `work` does, with its panic.
pub fn on_thread<T: Send>(seed: u64, work: impl FnOnce() -> T + Send) -> T {
    // The linker keeps the definitions below only where something refers to them.
    std::hint::black_box((getrandom as *const c_void, clock_gettime as *const c_void));
    thread::scope(|scope| {
        // Polling a node's nested futures unoptimised takes more than the default stack of a spawned thread.
        let builder = thread::Builder::new().name(format!("sim-{seed}")).stack_size(32 << 20);
        let spawned = builder.spawn_scoped(scope, || {
            SEQUENCE.set(Some(SmallRng::seed_from_u64(seed)));
            WALL.set(Some(EPOCH));
            work()
        });
        match spawned.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => panic!("cannot start a thread for the simulation: {error}; close other programs"),
        }
    })
}

/// The C library's function of this name, for every caller in the binary.
///
/// # Safety
/// As for the C function: `buffer` is valid for writes of `len` bytes, or `len` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: u32) -> isize {
    // A thread that is ending has no sequence any more: then, too, the kernel answers.
    let sequence = SEQUENCE.try_with(Cell::take).ok().flatten();
    let Some(mut sequence) = sequence else {
        // SAFETY: the arguments are those of our caller, who promises that they are valid for this call.
        return unsafe { syscall(SYS_GETRANDOM, buffer, len, flags) };
    };
    if len > 0 {
        // SAFETY: our caller promises that `buffer` is valid for writes of `len` bytes; zeroing makes it initialised.
        let bytes = unsafe {
            std::ptr::write_bytes(buffer.cast::<u8>(), 0, len);
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len)
        };
        sequence.fill_bytes(bytes);
    }
    SEQUENCE.set(Some(sequence));
    isize::try_from(len).unwrap_or(isize::MAX)
}

/// Seconds and nanoseconds, as the C library lays them out on 64-bit Linux.
#[repr(C)]
#[derive(Debug)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// The C library's function of this name, for every caller in the binary.
///
/// # Safety
/// As for the C function: `time` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    const REALTIME: c_int = 0;
    let wall = WALL.try_with(Cell::get).ok().flatten().filter(|_| clock == REALTIME);
    let Some(wall) = wall else {
        // SAFETY: the arguments are those of our caller, who promises that they are valid for this call.
        return unsafe { syscall(SYS_CLOCK_GETTIME, c_long::from(clock), time) } as c_int;
    };
    let seconds = i64::try_from(wall.as_secs()).unwrap_or(i64::MAX);
    // SAFETY: our caller promises that `time` is valid for a write.
    unsafe { time.write(Timespec { seconds, nanoseconds: wall.subsec_nanos().into() }) };
    0
}

#[cfg(target_arch = "x86_64")]
const SYS_GETRANDOM: c_long = 318;
#[cfg(target_arch = "x86_64")]
const SYS_CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const SYS_GETRANDOM: c_long = 278;
#[cfg(target_arch = "aarch64")]
const SYS_CLOCK_GETTIME: c_long = 113;

#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!("the simulator replaces functions of the C library of 64-bit Linux; build the other crates without it");

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> isize;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::collections::HashMap;

    /// Everything that draws from the system, in one value.
    fn draw() -> (Vec<u32>, u64, Vec<u8>) {
        let map: HashMap<u32, ()> = (0..100).map(|key| (key, ())).collect();
        let from_crate: u64 = rand::rngs::SmallRng::from_os_rng().next_u64();
        let mut bytes = vec![0; 40];
        rand::rng().fill_bytes(&mut bytes);
        (map.into_keys().collect(), from_crate, bytes)
    }

    #[test]
    fn one_seed_gives_one_sequence_and_threads_without_one_ask_the_kernel() {
        let first = on_thread(7, draw);
        assert_eq!(first, on_thread(7, draw));
        let other = on_thread(8, draw);
        assert!(first.0 != other.0 && first.1 != other.1 && first.2 != other.2);
        let (a, b) = (thread::spawn(draw).join().unwrap(), thread::spawn(draw).join().unwrap());
        assert!(a.0 != b.0 && a.1 != b.1 && a.2 != b.2);
    }

    #[test]
    fn wall_time_stands_still_until_it_is_moved() {
        use std::time::{Instant, SystemTime};
        let since_1970 = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        on_thread(1, || {
            assert_eq!(since_1970(), EPOCH);
            set_elapsed(Duration::from_millis(1500));
            assert_eq!(since_1970(), EPOCH + Duration::from_millis(1500));
            let before = Instant::now();
            thread::sleep(Duration::from_millis(2));
            assert!(before.elapsed() >= Duration::from_millis(2));
        });
        let real = since_1970();
        thread::sleep(Duration::from_millis(2));
        assert!(since_1970() > real);
    }

    #[test]
    fn a_panic_comes_through() {
        let panic = std::panic::catch_unwind(|| on_thread(1, || panic!("found it"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"found it"));
    }
}
