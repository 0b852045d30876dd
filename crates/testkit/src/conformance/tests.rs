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

#[test]
fn a_shorter_case_asks_the_same_of_fewer_positions_or_heads() {
    let dense = Spec::new("dense").heads(6, 2).dense(2, 65, 40);
    let heads = dense.shorter().unwrap();
    assert_eq!((heads.num_heads, heads.num_kv_heads, heads.q_lengths()), (3, 1, vec![65, 65]));
    let halves = heads.shorter().unwrap();
    assert_eq!((halves.q_lengths(), halves.kv_lengths()), (vec![33, 33], vec![20, 20]));
    let paged = Spec::new("paged").heads(4, 1).q_ragged(&[9, 1]).paged(16, &[100, 0]).shorter().unwrap();
    assert_eq!((paged.q_lengths(), paged.kv_lengths()), (vec![5, 1], vec![50, 0]));
    assert!(halves.query_start(&[3, 4]).shorter().is_none(), "positions would not fit the lengths");
    for spec in TABLE
        .iter()
        .flat_map(|row| (row.cases)())
        .filter(|spec| (8_000_000..12_000_000).contains(&spec.cost()))
    {
        let Some(shorter) = spec.shorter() else { continue };
        assert!(shorter.cost() < spec.cost(), "{}", spec.name);
        Oracle::new(&shorter.build()).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
    }
}
