//! Links the payload as what a boot loader expects: no C start-up files, no libraries, our own memory layout.

use std::env;
use std::path::Path;

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = Path::new(&root).join("payload.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-zmax-page-size=4096"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
