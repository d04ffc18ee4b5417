//! The entry point of a replica that breaks one rule on purpose, or whose wall clock is wrong.
//! Other tests start it as a process of its own.

#[test]
#[ignore = "other tests start it as a process"]
fn serve() {
    countersign_test_support::altered::serve();
}
