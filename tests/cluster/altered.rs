//! The process of an altered replica, which other tests start.

#[test]
#[ignore = "other tests start it as a process"]
fn serve() {
    countersign_test_support::altered::serve();
}
