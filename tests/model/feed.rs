//! A model of the feed. A replica that reports a position as applied must hold every entry that was
//! committed up to that position. There are three transactions. The last one revokes the same key
//! as the first, which moves that key's entry to a new position. A page has one entry.

use stateright::{Model, Property};

const WRITERS: usize = 3;
/// The key that each transaction revokes.
const KEY: [usize; WRITERS] = [0, 1, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Positions come from a sequence, so an entry may be committed after an entry with a later
    /// position.
    Bigserial,
    /// A full page advances the applied position, and not only the cursor.
    FullPageCounts,
    /// The head is read by a statement after the one that reads the page.
    HeadReadLater,
}

pub struct Feed {
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    Idle,
    /// The writer has taken a position and has not committed.
    HasPosition(u8),
    Committed(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    writers: [Writer; WRITERS],
    /// The last position given out.
    last: u8,
    /// The position of each key's entry; zero if there is none.
    entries: [u8; 2],
    /// The head of the feed, as a reader sees it.
    head: u8,
    /// The position up to which the replica has read, page by page.
    cursor: u8,
    /// The keys that the replica holds, as bits.
    index: u8,
    /// The position that the replica reports as applied.
    applied: u8,
    /// True if the replica has read the last page and has yet to read the head. This occurs only
    /// with `Broken::HeadReadLater`.
    is_at_end: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    TakePosition(usize),
    Commit(usize),
    Page,
    Head,
}

impl Feed {
    fn commit(&self, state: &mut State, writer: usize, position: u8) {
        state.writers[writer] = Writer::Committed(position);
        state.entries[KEY[writer]] = position;
        state.head = state.head.max(position);
    }
}

impl Model for Feed {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            writers: [Writer::Idle; WRITERS],
            last: 0,
            entries: [0; 2],
            head: 0,
            cursor: 0,
            index: 0,
            applied: 0,
            is_at_end: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for writer in 0..WRITERS {
            actions.extend([Action::TakePosition(writer), Action::Commit(writer)]);
        }
        actions.extend([Action::Page, Action::Head]);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::TakePosition(writer) => {
                let comes_too_early =
                    writer == 2 && !matches!(state.writers[0], Writer::Committed(_));
                if state.writers[writer] != Writer::Idle || comes_too_early {
                    return None;
                }
                next.last += 1;
                next.writers[writer] = Writer::HasPosition(next.last);
                // The row of the head is locked from here to the commit, so no other transaction
                // can take a position in between. The model therefore makes both in one step.
                if self.broken != Some(Broken::Bigserial) {
                    self.commit(&mut next, writer, state.last + 1);
                }
            }
            Action::Commit(writer) => {
                let Writer::HasPosition(position) = state.writers[writer] else { return None };
                self.commit(&mut next, writer, position);
            }
            Action::Page => {
                let found = (0..2)
                    .filter(|&key| state.entries[key] > state.cursor)
                    .min_by_key(|&key| state.entries[key]);
                match found {
                    Some(key) => {
                        next.index |= 1 << key;
                        next.cursor = state.entries[key];
                        if self.broken == Some(Broken::FullPageCounts) {
                            next.applied = next.cursor;
                        }
                    }
                    None if self.broken == Some(Broken::HeadReadLater) => next.is_at_end = true,
                    None => {
                        next.cursor = state.head;
                        next.applied = state.head;
                    }
                }
            }
            Action::Head => {
                if !state.is_at_end {
                    return None;
                }
                next.is_at_end = false;
                next.cursor = state.head;
                next.applied = state.head;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is applied is held", |_, state: &State| {
                (0..WRITERS).all(|writer| match state.writers[writer] {
                    Writer::Committed(position) if position <= state.applied => {
                        state.index & (1 << KEY[writer]) != 0
                    }
                    _ => true,
                })
            }),
            Property::sometimes("all is applied", |_, state: &State| {
                state.applied == WRITERS as u8
            }),
            Property::sometimes("an entry moves away before it is read", |_, state: &State| {
                state.index == 0 && state.entries[0] == 3
            }),
        ]
    }
}
