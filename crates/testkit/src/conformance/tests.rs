use std::collections::HashSet;

use super::*;

#[test]
fn names_are_unique_and_start_with_their_row() {
    let mut seen = HashSet::new();
    for row in TABLE {
        for spec in (row.cases)() {
            assert!(spec.name.starts_with(&format!("{}/", row.name)), "{}", spec.name);
            assert!(seen.insert(spec.name.clone()), "{} appears twice", spec.name);
        }
    }
}

#[test]
fn every_expectation_matches_some_case() {
    let names = names();
    for line in EXPECTATIONS {
        assert!(names.iter().any(|name| expectations::matches(line.case, name)), "{line:?}");
    }
}

#[test]
fn a_budget_keeps_something_of_every_row() {
    let filter = Filter::all().budget(100_000_000);
    for row in TABLE {
        let kept = filter.select(row);
        let spent: u64 = kept.iter().map(Spec::cost).sum();
        assert!(kept.len() > 10 && spent <= 100_000_000 / TABLE.len() as u64, "{}: {}", row.name, kept.len());
    }
}

#[test]
fn the_table_is_affordable() {
    for row in TABLE {
        let cases = (row.cases)();
        let cost: u64 = cases.iter().map(Spec::cost).sum();
        println!("{:<5} {:>4} cases {:>6.2} G", row.name, cases.len(), cost as f64 * 1e-9);
        let mut costs: Vec<(u64, &str)> =
            cases.iter().map(|spec| (spec.cost(), spec.name.as_str())).collect();
        costs.sort();
        for (cost, name) in costs.iter().rev().take(3) {
            println!("      {:.3} G {name}", *cost as f64 * 1e-9);
        }
    }
    let total: u64 = TABLE.iter().flat_map(|row| (row.cases)()).map(|spec| spec.cost()).sum();
    assert!(total < 20_000_000_000, "{total} multiplications");
}
