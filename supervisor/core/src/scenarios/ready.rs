//! Workers that do not get ready.

use super::*;

#[test]
fn a_reload_whose_workers_do_not_get_ready_says_what_was_missing() {
    for (proof, missing) in [
        (Proof::Word, "did not get ready within 60s"),
        (Proof::Notice, "it did not say READY=1"),
        (Proof::Wait, "it was not seen to wait for connections"),
    ] {
        let mut stage = Stage::serving(PLAN);
        stage.reload(Plan { proof, ..PLAN });
        stage.pass(61.0);
        assert!(
            stage
                .facts()
                .any(|fact| matches!(fact, Fact::StartTimedOut(_, _, said) if *said == proof))
        );
        let reason = stage.failure().expect("the reload has failed");
        assert!(reason.contains(missing), "{reason}");
    }
}
