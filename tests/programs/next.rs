//! What the tests of the upgrade take for the next version: the same program, built with the feature `next`.

fn main() -> std::process::ExitCode {
    supervisor::stock()
}
