//! Tests of the whole way from what was typed to what is true.

use super::*;

#[test]
fn p() {
    let me = Identity::supervisor();
    println!("{}", command(&me).render_long_help());
    let inv = Source::from_parts(
        &me,
        ["supervisor", "--workers", "3", "--bind", "[::1]:80", "--bind", "unix:/a,mode=0660"],
        [("SUPERVISOR_THREADS", "3")],
    )
    .unwrap();
    println!("{:#?}", inv.source.load(&Surroundings { cpus: 2, inherited: &[], check_app: &|_| Ok(()) }));
}
