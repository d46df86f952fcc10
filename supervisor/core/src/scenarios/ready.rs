//! Workers that do not become ready.

use crate::fixtures::*;

#[test]
fn a_reload_whose_workers_do_not_become_ready_says_what_was_missing() {
    for (readiness, missing) in [
        (ReadinessSignal::Message, "did not get ready within 60s"),
        (ReadinessSignal::Notify, "it did not say READY=1"),
        (
            ReadinessSignal::Probe,
            "it was not seen to wait for connections",
        ),
    ] {
        let mut stage = Stage::serving(PLAN);
        stage.reload(Plan { readiness, ..PLAN });
        stage.pass(61.0);
        assert!(
            stage
                .facts()
                .any(|fact| matches!(fact, Fact::StartTimedOut(_, _, said) if *said == readiness))
        );
        let reason = stage.failure().expect("the reload has failed");
        assert!(reason.contains(missing), "{reason}");
    }
}
