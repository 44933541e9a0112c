//! Randomness from the seed. What a process gets from the operating system (for the keys of hash maps, for election
//! timeouts, for tokens) comes through `getrandom`, and that is answered here on the thread of the simulation.

use std::{
    cell::Cell,
    ffi::{c_uint, c_void},
};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread gets what follows from the seed.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
}

/// SplitMix64 (Steele, Lea and Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Takes the place of libc's function in every program that this library is part of. On other threads than the
/// simulation's it is the system call.
///
/// # Safety
/// `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize {
    let Some(mut state) = STATE.get() else {
        // SAFETY: the arguments are those of the caller.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize };
    };
    // SAFETY: the caller gives a buffer of `len` bytes.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len) };
    for chunk in buffer.chunks_mut(8) {
        chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
    }
    STATE.set(Some(state));
    len as isize
}
