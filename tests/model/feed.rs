//! The feed: a replica that says it has applied everything up to a place holds every entry that was
//! committed there. Three transactions, of which the last revokes again what the first did and so
//! moves its entry; pages of one entry.

use stateright::{Model, Property};

const WRITERS: usize = 3;
/// What each transaction revokes.
const KEY: [usize; WRITERS] = [0, 1, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Places come from a sequence, so a place may be committed after a later one.
    Bigserial,
    /// A page that is full moves the place applied, and not only the cursor.
    FullPageCounts,
    /// The head is read by a statement after the one that read the page.
    HeadReadLater,
}

pub struct Feed {
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writer {
    Idle,
    /// It has taken a place, and has not committed.
    Placed(u8),
    Committed(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    writers: [Writer; WRITERS],
    /// The last place given out.
    last: u8,
    /// Where each key's entry stands; zero for nowhere.
    entries: [u8; 2],
    /// The head, as a reader sees it.
    head: u8,
    /// What the replica has read up to, page by page.
    cursor: u8,
    index: u8,
    /// What it says it has applied.
    applied: u8,
    /// It has read the last page, and is to read the head.
    is_at_end: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    FeedPosition(usize),
    Commit(usize),
    Page,
    Head,
}

impl Feed {
    fn commit(&self, state: &mut State, writer: usize, place: u8) {
        state.writers[writer] = Writer::Committed(place);
        state.entries[KEY[writer]] = place;
        state.head = state.head.max(place);
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
            actions.extend([Action::FeedPosition(writer), Action::Commit(writer)]);
        }
        actions.extend([Action::Page, Action::Head]);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        match action {
            Action::FeedPosition(writer) => {
                let comes_too_early =
                    writer == 2 && !matches!(state.writers[0], Writer::Committed(_));
                if state.writers[writer] != Writer::Idle || comes_too_early {
                    return None;
                }
                next.last += 1;
                next.writers[writer] = Writer::Placed(next.last);
                // The head's row is locked from here to the commit: nobody else can do anything
                // between the two.
                if self.broken != Some(Broken::Bigserial) {
                    self.commit(&mut next, writer, state.last + 1);
                }
            }
            Action::Commit(writer) => {
                let Writer::Placed(place) = state.writers[writer] else { return None };
                self.commit(&mut next, writer, place);
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
                    Writer::Committed(place) if place <= state.applied => {
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
