//! Parts of lists: at most so many, and where the next part begins.

use crate::problem::{ApiError, ApiResult};

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 500;

/// How many the caller wants.
///
/// # Errors
/// 400 outside of 1 to 500.
pub(crate) fn limit(wanted: Option<i64>) -> ApiResult<i64> {
    let limit = wanted.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::bad_request("limit must be from 1 to 500"))
    }
}

/// The part of a whole list that is in order of its names, behind the name `after`; and the cursor of the next part.
pub(crate) fn part<T>(
    all: Vec<T>,
    name: impl Fn(&T) -> String,
    limit: i64,
    after: Option<&str>,
) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut rest: Vec<T> = all
        .into_iter()
        .filter(|item| after.is_none_or(|after| name(item).as_str() > after))
        .collect();
    let more = rest.len() > limit;
    rest.truncate(limit);
    let next = rest.last().filter(|_| more).map(name);
    (rest, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_list_are_the_list() {
        let all = vec!["a", "b", "c", "d"];
        let take = |limit, after| part(all.clone(), |name| (*name).to_owned(), limit, after);
        assert_eq!(take(3, None), (vec!["a", "b", "c"], Some("c".to_owned())));
        assert_eq!(take(3, Some("c")), (vec!["d"], None));
        assert_eq!(take(4, None), (all.clone(), None));
        // What the cursor names may be gone by now.
        assert_eq!(take(2, Some("bb")), (vec!["c", "d"], None));
        assert_eq!(take(2, Some("d")), (vec![], None));
    }
}
