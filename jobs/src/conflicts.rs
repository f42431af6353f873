//! What a newer job of a workspace does to an older one: kind × kind × where the older one is.
//!
//! A kind that is added gets its rows here; what stands in no row waits.

use longshore_ledger::Resolution::{Cancel, Coalesce, Supersede, Wait};
use longshore_ledger::{Conflict, Older, Resolution};

use crate::{provision, purge, restart, stop};

/// The newer kind, the older kind, and what happens to the older job in each place of [`Older::ALL`]: scheduled, backing
/// off, queued, running.
type Row = (&'static str, &'static str, [Resolution; 4]);

const ROWS: [Row; 12] = [
    // One waiting provision is enough; one that runs may already be past what the newer request is about.
    (
        provision::KIND,
        provision::KIND,
        [Coalesce, Coalesce, Coalesce, Wait],
    ),
    // What is to come up comes up after what is to go is gone.
    (provision::KIND, stop::KIND, [Wait; 4]),
    // A restart ends in the same way, with what is newest then.
    (provision::KIND, restart::KIND, [Wait; 4]),
    // A stopped workspace is not brought up any more, not even by a queue that is resumed later.
    (
        stop::KIND,
        provision::KIND,
        [Supersede, Supersede, Supersede, Cancel],
    ),
    (
        stop::KIND,
        restart::KIND,
        [Supersede, Supersede, Supersede, Cancel],
    ),
    // The newer one takes down whatever the older one was to take down.
    (
        stop::KIND,
        stop::KIND,
        [Supersede, Supersede, Supersede, Wait],
    ),
    // One waiting restart is enough, and takes the flags of both; one that runs has read what it read.
    (
        restart::KIND,
        restart::KIND,
        [Coalesce, Coalesce, Coalesce, Wait],
    ),
    // What was asked for before is done first: then there is something to stop, and nothing is half made.
    (restart::KIND, provision::KIND, [Wait; 4]),
    (restart::KIND, stop::KIND, [Wait; 4]),
    // A purge takes down whatever there is; two of them share work that each does anew.
    (
        purge::KIND,
        provision::KIND,
        [Supersede, Supersede, Supersede, Cancel],
    ),
    (
        purge::KIND,
        restart::KIND,
        [Supersede, Supersede, Supersede, Cancel],
    ),
    (
        purge::KIND,
        stop::KIND,
        [Supersede, Supersede, Supersede, Wait],
    ),
];

/// The table.
pub const TABLE: [Conflict; 4 * ROWS.len()] = cells();

const fn cells() -> [Conflict; 4 * ROWS.len()] {
    let (newer, older, then) = ROWS[0];
    let first = Conflict {
        newer,
        older,
        when: Older::ALL[0],
        then: then[0],
    };
    let mut table = [first; 4 * ROWS.len()];
    let mut at = 0;
    while at < table.len() {
        let (newer, older, then) = ROWS[at / 4];
        table[at] = Conflict {
            newer,
            older,
            when: Older::ALL[at % 4],
            then: then[at % 4],
        };
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_exactly_one_cell_for_each_pair_of_kinds_and_place() {
        for newer in [provision::KIND, stop::KIND, restart::KIND, purge::KIND] {
            // Nothing is asked for after a purge, save another one.
            for older in [provision::KIND, stop::KIND, restart::KIND] {
                for place in Older::ALL {
                    let cells = TABLE
                        .iter()
                        .filter(|cell| (cell.newer, cell.older, cell.when) == (newer, older, place))
                        .count();
                    assert_eq!(cells, 1, "{newer} after {older} ({place:?})");
                }
            }
        }
    }
}
