//! What a newer job of a workspace does to an older one: kind × kind × where the older one is.
//!
//! A kind that is added gets its rows here; what stands in no row waits.

use longshore_ledger::{Conflict, Older, Resolution};

use crate::{provision, purge, stop};

const fn cell(newer: &'static str, older: &'static str, when: Older, then: Resolution) -> Conflict {
    Conflict {
        newer,
        older,
        when,
        then,
    }
}

/// The table.
pub const TABLE: [Conflict; 24] = [
    // One waiting provision is enough; one that runs may already be past what the newer request is about.
    cell(
        provision::KIND,
        provision::KIND,
        Older::Scheduled,
        Resolution::Coalesce,
    ),
    cell(
        provision::KIND,
        provision::KIND,
        Older::BackingOff,
        Resolution::Coalesce,
    ),
    cell(
        provision::KIND,
        provision::KIND,
        Older::Queued,
        Resolution::Coalesce,
    ),
    cell(
        provision::KIND,
        provision::KIND,
        Older::Running,
        Resolution::Wait,
    ),
    // What is to come up comes up after what is to go is gone.
    cell(
        provision::KIND,
        stop::KIND,
        Older::Scheduled,
        Resolution::Wait,
    ),
    cell(
        provision::KIND,
        stop::KIND,
        Older::BackingOff,
        Resolution::Wait,
    ),
    cell(provision::KIND, stop::KIND, Older::Queued, Resolution::Wait),
    cell(
        provision::KIND,
        stop::KIND,
        Older::Running,
        Resolution::Wait,
    ),
    // A stopped workspace is not brought up any more, not even by a queue that is resumed later.
    cell(
        stop::KIND,
        provision::KIND,
        Older::Scheduled,
        Resolution::Supersede,
    ),
    cell(
        stop::KIND,
        provision::KIND,
        Older::BackingOff,
        Resolution::Supersede,
    ),
    cell(
        stop::KIND,
        provision::KIND,
        Older::Queued,
        Resolution::Supersede,
    ),
    cell(
        stop::KIND,
        provision::KIND,
        Older::Running,
        Resolution::Cancel,
    ),
    // The newer one takes down whatever the older one was to take down.
    cell(
        stop::KIND,
        stop::KIND,
        Older::Scheduled,
        Resolution::Supersede,
    ),
    cell(
        stop::KIND,
        stop::KIND,
        Older::BackingOff,
        Resolution::Supersede,
    ),
    cell(stop::KIND, stop::KIND, Older::Queued, Resolution::Supersede),
    cell(stop::KIND, stop::KIND, Older::Running, Resolution::Wait),
    // A purge takes down whatever there is; two of them share work that each does anew.
    cell(
        purge::KIND,
        provision::KIND,
        Older::Scheduled,
        Resolution::Supersede,
    ),
    cell(
        purge::KIND,
        provision::KIND,
        Older::BackingOff,
        Resolution::Supersede,
    ),
    cell(
        purge::KIND,
        provision::KIND,
        Older::Queued,
        Resolution::Supersede,
    ),
    cell(
        purge::KIND,
        provision::KIND,
        Older::Running,
        Resolution::Cancel,
    ),
    cell(
        purge::KIND,
        stop::KIND,
        Older::Scheduled,
        Resolution::Supersede,
    ),
    cell(
        purge::KIND,
        stop::KIND,
        Older::BackingOff,
        Resolution::Supersede,
    ),
    cell(
        purge::KIND,
        stop::KIND,
        Older::Queued,
        Resolution::Supersede,
    ),
    cell(purge::KIND, stop::KIND, Older::Running, Resolution::Wait),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_exactly_one_cell_for_each_pair_of_kinds_and_place() {
        for newer in [provision::KIND, stop::KIND, purge::KIND] {
            // Nothing is asked for after a purge, save another one.
            for older in [provision::KIND, stop::KIND] {
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
