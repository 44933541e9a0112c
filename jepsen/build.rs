//! `getrandom` of `src/simulation/entropy.rs` takes the place of libc's also for those who look it up by name.

fn main() {
    println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=getrandom");
    println!("cargo::rerun-if-changed=build.rs");
}
