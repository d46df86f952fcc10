//! What `scripts/bench-scoreboard` compares with: the same program, built with the feature `uncounted`.

fn main() -> std::process::ExitCode {
    supervisor::stock()
}
