//! The migrations are compiled in; a new file among them must recompile this crate.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
