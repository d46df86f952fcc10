//! What only a newer systemd can do.

use super::{PLAIN, begin, body, configure, python, v4};
use std::path::Path;
use testkit::load::{Plan, start};
use testkit::unit::{install, said};
use testkit::{LONG, wait_until};

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_notify_reload() {
    python("version 0");
    begin("Type=notify-reload\nExecReload=");
    let pid = PLAIN.pid();
    let load = start(Plan::rate(&v4(), 100.0).http("/", None));
    for version in 1..=10 {
        let text = format!("version {version}");
        python(&text);
        PLAIN.must("reload");
        (0..20).for_each(|_| assert_eq!(body(&v4()), text));
    }
    // systemd cannot report a failed reload of this kind: the status has it, and nothing changes.
    configure("nonsense = 1");
    PLAIN.try_to("reload");
    wait_until("an active service", LONG, || {
        PLAIN.property("ActiveState") == "active"
    });
    assert!(
        PLAIN.property("StatusText").contains("nonsense"),
        "{}",
        PLAIN.property("StatusText")
    );
    assert_eq!((PLAIN.pid(), body(&v4())), (pid, "version 10".to_owned()));
    load.finish().assert_flawless();
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_preserves() {
    configure("");
    install(Path::new(env!("CARGO_BIN_EXE_supervisor")));
    // systemd forgets a stopped unit, with its sockets, unless another unit wants it.
    said(&["systemctl", "add-wants", "throw-away.target", PLAIN.0]);
    PLAIN.drop_in("FileDescriptorStorePreserve=yes");
    PLAIN.must("start");
    wait_until("the sockets to be stored", LONG, || PLAIN.stored() == 3);
    let load = start(Plan::rate(&v4(), 100.0).http("/", Some("Hello, client!")));
    for _ in 0..3 {
        load.wait_for_more(50);
        PLAIN.must("stop");
        assert_eq!(
            (PLAIN.property("ActiveState"), PLAIN.stored()),
            ("inactive".to_owned(), 3)
        );
        PLAIN.must("start");
        assert_eq!(PLAIN.stored(), 3);
    }
    load.wait_for_more(50);
    load.finish().assert_flawless();
    // Releasing the addresses takes an explicit command.
    PLAIN.must("stop");
    said(&["systemctl", "clean", "--what=fdstore", PLAIN.0]);
    wait_until("the address to be free", LONG, || v4().connect().is_err());
}
