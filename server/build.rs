//! With `PINTLE_STATIC_LIBRARIES` the linker looks there first, as `script/package` has it.

fn main() {
    println!("cargo:rerun-if-env-changed=PINTLE_STATIC_LIBRARIES");
    if let Ok(folder) = std::env::var("PINTLE_STATIC_LIBRARIES") {
        println!("cargo:rustc-link-arg-bins=-L{folder}");
    }
}
