//! A measured guest's first process; see the library's `guest` module.

fn main() {
    outrigger_lab::guest::main()
}
