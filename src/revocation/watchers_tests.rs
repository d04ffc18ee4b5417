use futures_util::FutureExt;

use super::*;
use crate::{
    clock::SettableClock,
    domain::{ids::TokenId, revocation::Revoked, time::Timestamp},
};

const MARGIN: Duration = Duration::from_millis(250);
const CONFIG: WatchConfig = WatchConfig { lease: Duration::from_secs(2), max_watchers: 10 };
const FIRST: Incarnation = Incarnation::from_bytes([1; 16]);
const SECOND: Incarnation = Incarnation::from_bytes([2; 16]);

/// The watchers of a replica whose lease never ends, in the membership `FIRST`, with the feed at
/// position 10.
struct Fixture {
    clock: Arc<SettableClock>,
    lease: Lease,
    watchers: Arc<Watchers>,
}

impl Fixture {
    fn new() -> Self {
        let clock = Arc::new(SettableClock::at(Timestamp::from_seconds(1_700_000_000)));
        clock.advance(Duration::from_secs(100));
        let lease = Lease::new(clock.clone(), MARGIN);
        lease.take_for_ever();
        let watchers = Arc::new(Watchers::new(clock.clone(), MARGIN, CONFIG));
        watchers.publish(FIRST, &[], Seq(10));
        Self { clock, lease, watchers }
    }

    fn publish(&self, position: i64) {
        let revoked = Revoked::Token(TokenId::new([position.to_le_bytes()[0]; 16]));
        let expires_at = Timestamp::from_seconds(2_000_000_000);
        let entry = FeedEntry { seq: Seq(position), revoked, tenant: None, expires_at };
        self.watchers.publish(FIRST, &[entry], Seq(position));
    }

    /// Opens the stream of a watcher that has applied and confirmed everything.
    fn watcher(&self) -> Watcher {
        let mut watcher = self.watchers.open(None).unwrap();
        assert!(matches!(watcher.next_part(), Part::Reset));
        let place = self.watchers.place().unwrap();
        assert!(watcher.begin(place) && watcher.confirm(place));
        watcher
    }

    fn give(&self, watcher: &Watcher) -> Given {
        watcher.give_lease(self.watchers.read_lease(&self.lease).unwrap())
    }

    fn lease_of(&self, watcher: &Watcher) -> Duration {
        let Given::Lease(valid_for) = self.give(watcher) else { panic!("it gets no lease") };
        valid_for
    }

    fn vouch(&self, applied: i64) -> i64 {
        self.watchers.vouch(Seq(applied)).0
    }
}

fn at(position: i64) -> Place {
    Place { membership: FIRST, position: Seq(position) }
}

fn send_all(watcher: &mut Watcher) {
    while let Part::Entries(..) = watcher.next_part() {}
}

#[test]
fn a_position_is_vouched_for_once_each_watcher_with_a_lease_has_confirmed_it() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.watcher(), fixture.watcher());
    let mut watchers = [first, second];
    for watcher in &watchers {
        fixture.lease_of(watcher);
    }
    fixture.publish(11);
    for watcher in &mut watchers {
        send_all(watcher);
    }
    assert_eq!(fixture.vouch(11), 10);
    assert!(watchers[0].confirm(at(11)));
    assert_eq!(fixture.vouch(11), 10);
    assert!(watchers[1].confirm(at(11)));
    assert_eq!(fixture.vouch(11), 11);
    assert_eq!(fixture.vouch(9), 9, "never more than was applied");
}

#[test]
fn a_watcher_without_a_lease_holds_nothing_up() {
    let fixture = Fixture::new();
    let watcher = fixture.watcher();
    fixture.publish(11);
    assert_eq!(fixture.vouch(11), 11);
    // Now it may not get a lease for the position that it has reached.
    assert_eq!(fixture.give(&watcher), Given::Behind);
    let mut watcher = watcher;
    send_all(&mut watcher);
    fixture.lease_of(&watcher);
}

#[test]
fn a_silent_watcher_holds_a_position_up_until_the_leases_before_it_are_over() {
    let fixture = Fixture::new();
    let mut watcher = fixture.watcher();
    let over = fixture.watchers.over_after(fixture.lease_of(&watcher));
    fixture.clock.advance(Duration::from_secs(1));
    fixture.publish(11);
    send_all(&mut watcher);
    // This lease covers the position, so only the first one is waited for.
    fixture.lease_of(&watcher);
    fixture.publish(12);
    fixture.clock.advance(over - Duration::from_secs(1) - Duration::from_micros(1));
    assert_eq!(fixture.vouch(12), 10);
    fixture.clock.advance(Duration::from_micros(1));
    assert_eq!(fixture.vouch(12), 11);
    drop(watcher);
    assert_eq!(fixture.vouch(12), 11, "the end of the stream does not end its lease");
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(fixture.vouch(12), 12);
}

#[test]
fn the_next_lease_requires_that_the_position_of_the_last_one_is_confirmed() {
    let fixture = Fixture::new();
    let mut watcher = fixture.watcher();
    fixture.publish(11);
    send_all(&mut watcher);
    fixture.lease_of(&watcher);
    assert_eq!(fixture.give(&watcher), Given::Refused);
    assert!(!watcher.confirm(at(12)), "it was not sent");
    assert!(watcher.confirm(at(11)));
    let over = fixture.watchers.over_after(fixture.lease_of(&watcher));
    fixture.publish(12);
    send_all(&mut watcher);
    fixture.lease_of(&watcher);
    fixture.clock.advance(over);
    fixture.lease_of(&watcher);
}

#[test]
fn a_lease_of_a_watcher_ends_before_that_of_the_replica() {
    let fixture = Fixture::new();
    let watcher = fixture.watcher();
    assert_eq!(fixture.lease_of(&watcher), Duration::from_millis(1996), "less 0.2 %");
    let start = fixture.lease.start();
    fixture.lease.take(start, Duration::from_secs(2));
    fixture.clock.advance(Duration::from_millis(750));
    let read = fixture.watchers.read_lease(&fixture.lease).unwrap();
    assert_eq!(read.valid_for, Duration::from_millis(998), "1.25 s less the margin and 0.2 %");
    fixture.clock.advance(Duration::from_millis(960));
    assert!(fixture.watchers.read_lease(&fixture.lease).is_none(), "too little is left");
    fixture.clock.advance(Duration::from_secs(1));
    assert!(fixture.watchers.read_lease(&fixture.lease).is_none());
}

#[test]
fn a_stream_goes_on_only_in_the_membership_of_its_cursor() {
    let fixture = Fixture::new();
    fixture.publish(11);
    let mut resumed = fixture.watchers.open(Some(at(10))).unwrap();
    assert!(matches!(resumed.next_part(), Part::Entries(_, place) if place == at(11)));
    assert!(matches!(resumed.next_part(), Part::UpToDate));
    for place in [at(9), at(12), Place { membership: SECOND, position: Seq(10) }] {
        let mut other = fixture.watchers.open(Some(place)).unwrap();
        assert!(matches!(other.next_part(), Part::Reset), "{place:?}");
    }
}

#[test]
fn a_watcher_that_goes_on_has_confirmed_its_cursor() {
    let fixture = Fixture::new();
    let mut resumed = fixture.watchers.open(Some(at(10))).unwrap();
    assert!(matches!(resumed.next_part(), Part::UpToDate));
    // While nothing is revoked, the stream sends no cursor that could be confirmed.
    fixture.lease_of(&resumed);
    fixture.lease_of(&resumed);
}

#[tokio::test]
async fn another_membership_resets_every_stream_and_gives_no_lease_before_it_is_loaded() {
    let fixture = Fixture::new();
    let mut watcher = fixture.watcher();
    fixture.lease_of(&watcher);
    let over = fixture.watchers.longest_validity();
    let earlier = fixture.watchers.read_lease(&fixture.lease).unwrap();
    fixture.watchers.end_membership();
    assert!(matches!(watcher.next_part(), Part::Loading));
    assert!(fixture.watchers.read_lease(&fixture.lease).is_none());
    assert!(fixture.watchers.leases_over().now_or_never().is_none());

    fixture.watchers.publish(SECOND, &[], Seq(5));
    assert!(matches!(watcher.next_part(), Part::Reset));
    assert!(!watcher.begin(at(10)), "the snapshot is of the earlier membership");
    let place = Place { membership: SECOND, position: Seq(5) };
    assert!(watcher.begin(place));
    assert!(watcher.confirm(at(10)), "it was sent before the reset");
    assert_eq!(watcher.give_lease(earlier), Given::Refused, "it was read before");
    fixture.lease_of(&watcher);
    fixture.watchers.publish(SECOND, &[], Seq(6));
    assert_eq!(fixture.vouch(6), 0, "neither the earlier confirmation nor the lease covers it");
    fixture.clock.advance(over);
    assert_eq!(fixture.vouch(6), 6);
    assert!(fixture.watchers.leases_over().now_or_never().is_some());
}

#[tokio::test]
async fn whoever_waits_to_report_is_woken_by_the_last_confirmation() {
    let fixture = Fixture::new();
    let mut watchers = [fixture.watcher(), fixture.watcher(), fixture.watcher()];
    for watcher in &watchers {
        fixture.lease_of(watcher);
    }
    fixture.publish(11);
    let mut safer = Box::pin(fixture.watchers.safer_than(Seq(10)));
    for watcher in &mut watchers {
        send_all(watcher);
        assert!(safer.as_mut().now_or_never().is_none());
        assert!(watcher.confirm(at(11)));
    }
    assert!(safer.now_or_never().is_some());
    assert!(fixture.watchers.safer_than(Seq(11)).now_or_never().is_none(), "nothing is newer");
}

#[test]
fn watchers_of_an_earlier_process_hold_everything_up_until_their_leases_are_over() {
    let fixture = Fixture::new();
    fixture.watchers.add_earlier(Duration::from_secs(3));
    fixture.clock.advance(Duration::from_secs(3) - Duration::from_micros(1));
    assert_eq!(fixture.vouch(10), 0);
    fixture.clock.advance(Duration::from_micros(1));
    assert_eq!(fixture.vouch(10), 10);
}

#[test]
fn the_number_of_watchers_is_limited_and_none_is_opened_after_a_stop() {
    let fixture = Fixture::new();
    let mut watchers: Vec<_> = (0..10).map(|_| fixture.watcher()).collect();
    fixture.lease_of(&watchers[0]);
    let error = |fixture: &Fixture| fixture.watchers.open(None).err();
    assert_eq!(error(&fixture), Some(NotOpened::TooMany));
    drop(watchers.remove(0));
    assert_eq!(error(&fixture), Some(NotOpened::TooMany), "its lease still runs");
    drop(watchers.remove(0));
    assert_eq!(error(&fixture), None);
    fixture.watchers.stop();
    assert_eq!(error(&fixture), Some(NotOpened::Stopped));
    assert!(matches!(watchers[0].next_part(), Part::Stopped));
}

#[test]
fn a_watcher_that_falls_behind_the_log_is_too_slow() {
    let fixture = Fixture::new();
    let mut watcher = fixture.watcher();
    let entry = FeedEntry {
        seq: Seq(11),
        revoked: Revoked::Token(TokenId::new([1; 16])),
        tenant: None,
        expires_at: Timestamp::from_seconds(2_000_000_000),
    };
    fixture.watchers.publish(FIRST, std::slice::from_ref(&entry), Seq(11));
    fixture.watchers.publish(FIRST, &vec![entry; 100_000], Seq(12));
    assert!(matches!(watcher.next_part(), Part::TooSlow));
}

#[test]
fn entries_that_were_published_meanwhile_are_sent_together() {
    let fixture = Fixture::new();
    let mut watcher = fixture.watcher();
    assert!(!watcher.is_behind());
    fixture.publish(11);
    fixture.publish(12);
    assert!(watcher.is_behind());
    let Part::Entries(batches, place) = watcher.next_part() else { panic!("there are entries") };
    assert_eq!((batches.len(), place), (2, at(12)));
    assert!(!watcher.is_behind());
}

#[test]
fn many_watchers_are_sent_entries_less_often_but_well_within_a_lease() {
    let pace = |watchers| pace(watchers, CONFIG.lease);
    let paces = [0, 1, 100, 150, 151, 1000, 2000, usize::MAX].map(pace);
    let micros = Duration::from_micros;
    let expected = [0, 100, 10_000, 15_000, 15_500, 440_000, 500_000, 500_000].map(micros);
    assert_eq!(paces, expected);
}
