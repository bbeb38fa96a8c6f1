//! Checkers can fail: each deliberate bug is caught, by the checker that is named for it.

use mainstay_sim::bugs::{Bug, Worlds};
use mainstay_sim::monkeys::Script;
use mainstay_sim::world::{Options, World, start};

/// How many storms may pass before a bug is caught.
const STORMS: u64 = 60;

/// Plain storms: how many worlds it took.
fn caught_by_storms(bug: Bug, by: &str) -> u64 {
    let mut others = Vec::new();
    for seed in 0..STORMS {
        let stormy = Options::stormy(seed, Some(bug));
        // Some are calm: faults hide some bugs.
        let one_fault_in = stormy.one_fault_in.filter(|_| seed % 4 != 3);
        let options = Options { one_fault_in, ..stormy };
        match World::new(seed, options).run().violation {
            Some(violation) if violation.invariant == by => return seed + 1,
            Some(violation) => others.push((seed, violation)),
            None => {}
        }
    }
    panic!("{bug:?} is not caught by {by} in {STORMS} storms; instead: {others:#?}");
}

/// Worlds whose nodes fall silent: how many it took.
fn caught_in_silence(bug: Bug, by: &str) -> u64 {
    let mut others = Vec::new();
    for seed in 0..STORMS {
        let options = Options::silent(seed, Some(bug));
        let script = Script::of_movers(start(), options.storm);
        match World::with_script(seed, options, script).run().violation {
            Some(violation) if violation.invariant == by => return seed + 1,
            Some(violation) => others.push((seed, violation)),
            None => {}
        }
    }
    panic!("{bug:?} is not caught by {by} in {STORMS} worlds; instead: {others:#?}");
}

/// Worlds with two machines of one name: how many it took.
fn caught_by_twins(bug: Bug, by: &str) -> u64 {
    let mut others = Vec::new();
    for seed in 0..STORMS {
        let options = Options::twins(seed, Some(bug));
        let script = Script::of_twins(seed, start(), options.storm);
        match World::with_script(seed, options, script).run().violation {
            Some(violation) if violation.invariant == by => return seed + 1,
            Some(violation) => others.push((seed, violation)),
            None => {}
        }
    }
    panic!("{bug:?} is not caught by {by} in {STORMS} worlds; instead: {others:#?}");
}

/// Lets the worlds that are named for a bug catch it, and says how long it took.
fn catch(bug: Bug) {
    let (_, by, worlds) = Bug::ALL.into_iter().find(|(of, ..)| *of == bug).expect("a bug of the table");
    let begun = std::time::Instant::now();
    let many = match worlds {
        Worlds::Storms => caught_by_storms(bug, by),
        Worlds::Silence => caught_in_silence(bug, by),
        Worlds::Twins => caught_by_twins(bug, by),
    };
    println!("{by} {bug:?}: {worlds:?}, {many} worlds, {:.1} s", begun.elapsed().as_secs_f64());
}

macro_rules! each_is_caught {
    ($($name:ident: $bug:ident;)*) => {
        $(#[test] fn $name() { catch(Bug::$bug); })*
        #[test]
        fn there_is_a_test_for_each() {
            let tested = [$(Bug::$bug),*];
            assert!(Bug::ALL.iter().all(|(bug, ..)| tested.contains(bug)), "{tested:?}");
            assert_eq!(tested.len(), Bug::ALL.len());
        }
    };
}

each_is_caught! {
    s1_a_stale_list_that_is_trusted: TrustsStaleList;
    s2_a_deletion_that_is_confirmed_too_early: ConfirmsTooEarly;
    s4_two_pods_at_once: SkipsOrder;
    s5_a_scale_in_from_below: ScalesInFromBelow;
    s8_a_claim_that_goes_with_its_pod: DeletesClaims;
    v6_a_folder_named_by_its_claim: KeepsDirectories;
    a3_a_disk_from_the_past: RestoresOldDisk;
    v3_a_volume_that_is_emptied_in_use: RecyclesInUse;
    s3_a_hostname_that_is_not_the_pods: RenamesHosts;
    s4_min_ready_seconds_passed_over: IgnoresMinReady;
    s6_more_away_than_max_unavailable: IgnoresMaxUnavailable;
    s6_a_partition_passed_over: IgnoresPartition;
    s10_a_stranger_that_is_deleted: DeletesStrangers;
    n2_dns_that_does_not_follow_pods: DnsIgnoresPods;
    n1_dns_that_does_not_follow_slices: DnsIgnoresSlices;
    a4_a_watch_that_loses_events: WatchLosesEvents;
    a5_a_list_of_the_past: ListsThePast;
    a6_a_watch_that_begins_later_than_its_list: WatchesFromNow;
    a6_pages_of_different_moments: PagesOfNow;
    a7_a_compaction_that_is_forgotten: ForgetsCompaction;
    a8_writes_that_do_not_say_what_they_are_about: ForgetsUids;
    a9_a_refusal_of_what_was_done: RefusesWhatItDid;
    s11_an_agent_that_ends_what_it_finds: EndsWhatItFinds;
    s12_deletions_that_nobody_hears_of: MissesDeletions;
    v2_a_claim_that_goes_in_use: UnprotectsClaims;
    v5_a_pod_that_is_placed_anywhere: PlacesAnywhere;
    s7_a_broken_pod_that_is_waited_for: WaitsForBroken;
    s9_a_claim_that_is_not_made_again: ForgetsClaims;
    v1_a_volume_for_two_claims: BindsTwice;
    v8_a_folder_that_is_removed_while_it_is_mounted: RemovesMounted;
    v9_a_claim_that_two_pods_have: SharesClaims;
    n4_a_filter_that_does_not_follow_pods: ProxyIgnoresPods;
    n4_a_filter_that_does_not_follow_slices: ProxyIgnoresSlices;
    n4_a_service_without_endpoints_that_nobody_refuses: ProxyForgetsRefusals;
    s12_a_key_that_is_decided_before_its_own_writes_are_seen: ForgetsOwnWrites;
    a8_decisions_about_whatever_has_the_name: ForgetsPreconditions;
    s6_on_delete_taken_for_a_rolling_update: RollsOnDelete;
    s13_a_server_that_forgets_the_margin: ForgetsMargin;
    s13_an_agent_that_pushes_without_a_renewal: PushesWithoutRenewal;
    s13_an_agent_that_starts_again_without_asking: StartsWithoutAsking;
    s1_a_machine_that_shares_its_name: SharesItsName;
    v3_a_machine_that_tends_anothers_volumes: TendsAnothersVolumes;
}
