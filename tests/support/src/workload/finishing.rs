//! The end of a run, after the last fault: every replica must work again.

use std::{sync::Arc, time::Duration};

use countersign::proto::RevokeRequest;
use futures_util::future::join_all;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    ledger::Dice,
    workload::asking::{Asker, Held, by_id},
    workload::history::{Answer, Target, TokenNumber},
};

/// The longest time after the last fault until every replica must have answered for every token.
const RECOVERY: Duration = Duration::from_secs(60);
/// The pause before a call that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The number of tokens in one call: the most that the service accepts.
const BATCH: usize = 256;
/// The most refreshes under way at the same time.
const REFRESHING: usize = 16;

/// Validates every token at each replica, refreshes every session that is still held, and revokes a
/// session at each replica. Failures are recorded, and the checker reports them.
pub async fn finish(asker: &Arc<Asker>, held: Vec<Held>, dice: &mut Dice) {
    let deadline = Instant::now() + RECOVERY;
    let all: Vec<_> = (0..asker.recorder.tokens()).map(TokenNumber).collect();
    let validating = (0..asker.fleet.permanent()).map(async |place| {
        for tokens in all.chunks(BATCH) {
            while !asker.validate(place, RECOVERY, tokens).await && Instant::now() < deadline {
                sleep(RETRY).await;
            }
        }
    });
    join_all(validating).await;
    let mut refreshing = JoinSet::new();
    for mut held in held {
        if refreshing.len() >= REFRESHING {
            refreshing.join_next().await;
        }
        let (asker, place) = (asker.clone(), dice.roll(asker.fleet.permanent()));
        refreshing.spawn(async move {
            asker.refresh(place, RECOVERY, &mut held).await;
        });
    }
    refreshing.join_all().await;
    for place in 0..asker.fleet.permanent() {
        while !revokes(asker, place).await && Instant::now() < deadline {
            sleep(RETRY).await;
        }
    }
}

/// Creates a session and revokes it; returns whether both were acknowledged.
async fn revokes(asker: &Asker, place: usize) -> bool {
    let Some(held) = asker.create(place, RECOVERY, "default", "", "the last one").await else {
        return false;
    };
    let message = RevokeRequest { target: Some(by_id(&held)), ..Default::default() };
    let answer = asker.revoke(place, RECOVERY, Target::Session(held.number), message).await;
    let token = [held.access_token];
    join_all((0..asker.fleet.permanent()).map(|place| asker.validate(place, RECOVERY, &token)))
        .await;
    answer == Some(Answer::Done)
}
