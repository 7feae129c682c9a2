//! Lists of prefixes in files (F2, P7): a new version takes effect at once and whole, a bad one leaves the old in force.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use testbed::{End, Result};

use crate::lab::{Firewall, MODES, cable, finish, on, wait_until};

testbed::listed_tests![
    two_hundred_reloads_under_traffic_never_mix_two_lists_or_lose_a_frame,
    a_list_takes_effect_however_it_is_written,
    a_list_behind_a_link_takes_effect_when_it_or_the_link_changes,
    a_list_takes_effect_when_a_folder_on_its_way_is_swapped,
    a_broken_list_leaves_the_old_one_in_force_and_is_named_with_its_line,
    a_hundred_thousand_entries_are_applied_whole,
    a_list_larger_than_max_entries_is_refused_with_the_mend,
    several_lists_are_one,
];

/// A list in a folder of its own.
struct ListFile {
    _folder: TempDir,
    path: PathBuf,
}

impl ListFile {
    fn new(content: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        fs::write(&path, content).unwrap();
        Self { _folder: folder, path }
    }

    fn arg(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// As editors and careful scripts do: another file is written, and renamed over this one.
    fn replace(&self, content: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, &self.path).unwrap();
    }
}

const APPLIED: &str = "prefixes are blocked now";
const REFUSED: &str = "the lists changed, and the old ones stay in force: ";

fn frame(from: &End, to: &End, source: Ipv4Addr) -> Vec<u8> {
    from.frame_to(to)
        .ipv4(source, to.ipv4)
        .udp(1, 9)
        .payload([0; 18])
        .build()
}

/// How many of these sources' packets, one each, are dropped.
fn dropped_of(firewall: &Firewall, from: &End, to: &End, sources: &[Ipv4Addr]) -> u64 {
    let before = firewall.report();
    let frames = sources.iter().map(|source| frame(from, to, *source));
    let sent = from.host.injector(&from.interface).unwrap().send_all(frames).unwrap();
    wait_until("all have arrived", || {
        firewall.report().total() >= before.total() + sent
    });
    firewall.report().dropped() - before.dropped()
}

/// Lets threads end that wait for these, also where a test fails: their scope would wait for them for ever.
struct SetOnDrop<'a>([&'a AtomicBool; 2]);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        for flag in self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn two_hundred_reloads_under_traffic_never_mix_two_lists_or_lose_a_frame() -> Result {
    testbed::harness::needs_two_cpus();
    // Prefixes of four addresses with gaps of other sizes between: one lies elsewhere in each list's tables.
    let every = |step: u32, count: u32| {
        let address = |index: u32| Ipv4Addr::from_bits(0x0a00_0000 + index * step * 4);
        (0..count).fold(String::new(), |list, index| format!("{list}{}/30\n", address(index)))
    };
    let (one, other) = (every(3, 2000), every(5, 1500));
    // Blocked in both lists (18,000 is a multiple of 12 and of 20), in neither, and in one of them each.
    let [always, never, in_one, in_other] =
        [1, 4, 12, 20].map(|behind| Ipv4Addr::from_bits(0x0a00_0000 + 18_000 + behind));
    let (client, server) = cable()?;
    let list = ListFile::new(&one);
    let firewall = Firewall::on(&server, &["--block-file", list.arg()]);
    let mut capture = server.host.capture(&server.interface)?;

    let (stop, all_arrived) = (AtomicBool::new(false), AtomicBool::new(false));
    let sources = [always, never, in_one, in_other];
    let (sent_each, arrived) = thread::scope(|scope| {
        let _threads_end = SetOnDrop([&stop, &all_arrived]);
        let sender = scope.spawn(|| {
            let injector = client.host.injector(&client.interface).unwrap();
            let frames = sources.map(|source| frame(&client, &server, source));
            let mut rounds = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                injector.send_all((0..8).flat_map(|_| &frames)).unwrap();
                rounds += 8;
                thread::sleep(Duration::from_millis(2));
            }
            rounds
        });
        let receiver = scope.spawn(|| {
            let mut arrived = sources.map(|_| 0_u64);
            loop {
                // A slow machine may take long to send the first frame: a pause ends nothing before the last was counted.
                let is_over = all_arrived.load(Ordering::Relaxed);
                let Some(frame) = capture.next(Duration::from_secs(1)).unwrap() else {
                    if is_over {
                        break;
                    }
                    continue;
                };
                let source = Ipv4Addr::from_octets(frame[26..30].try_into().unwrap());
                let index = sources.iter().position(|known| *known == source).unwrap();
                arrived[index] += 1;
            }
            arrived
        });
        for flip in 0..200 {
            list.replace(if flip % 2 == 0 { &other } else { &one });
            firewall.wait_for_word(APPLIED, flip + 1);
        }
        stop.store(true, Ordering::Relaxed);
        let sent_each = sender.join().unwrap();
        wait_until("all have arrived", || firewall.report().total() >= 4 * sent_each);
        all_arrived.store(true, Ordering::Relaxed);
        (sent_each, receiver.join().unwrap())
    });
    let (report, stderr) = firewall.stop_after(4 * sent_each);
    let [of_always, of_never, of_one, of_other] = arrived;
    assert_eq!(of_always, 0, "of {sent_each} frames that both lists block");
    assert_eq!(of_never, sent_each, "frames that no list blocks");
    for of_either in [of_one, of_other] {
        assert!(of_either > 0 && of_either < sent_each, "{of_either} of {sent_each}");
    }
    assert_eq!(report.total(), 4 * sent_each);
    assert_eq!(report.passed(), arrived.iter().sum::<u64>());
    assert_eq!(report.of("drop", "address"), report.dropped());
    assert!(!stderr.contains("error"), "{stderr}");
    Ok(())
}

fn a_list_takes_effect_however_it_is_written() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let list = ListFile::new("10.0.0.1\n");
        let firewall = Firewall::on(&server, &["--block-file", list.arg(), "--xdp-mode", mode]);
        let sources: Vec<Ipv4Addr> = (1..=5).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        let dropped = || dropped_of(&firewall, &client, &server, &sources);
        assert_eq!(dropped(), 1);

        list.replace("10.0.0.1\n10.0.0.2\n");
        firewall.wait_for_word(APPLIED, 1);
        assert_eq!(dropped(), 2, "renamed over");

        fs::write(&list.path, "10.0.0.1\n10.0.0.2\n10.0.0.3\n").unwrap();
        firewall.wait_for_word(APPLIED, 2);
        assert_eq!(dropped(), 3, "written in place");

        // A file that is gone is no new list.
        fs::remove_file(&list.path).unwrap();
        assert_eq!(dropped(), 3, "deleted");
        fs::write(&list.path, "10.0.0.0/29\n").unwrap();
        firewall.wait_for_word(APPLIED, 3);
        assert_eq!(dropped(), 5, "made again");

        // Another file in the same folder is none of ours.
        fs::write(list.path.with_extension("other"), "0.0.0.0/0\n").unwrap();
        list.replace("");
        firewall.wait_for_word(APPLIED, 4);
        assert_eq!(dropped(), 0, "emptied");
        let (_, stderr) = firewall.stop();
        assert_eq!(stderr.matches("the lists changed").count(), 4, "{stderr}");
    }
    Ok(())
}

fn a_list_behind_a_link_takes_effect_when_it_or_the_link_changes() -> Result {
    let (client, server) = cable()?;
    // The link in one folder, its target in another.
    let (linked, other) = (ListFile::new("10.0.0.1\n"), ListFile::new("10.0.0.0/30\n"));
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("list.txt");
    symlink(&linked.path, &link).unwrap();
    let firewall = Firewall::on(&server, &["--block-file", link.to_str().unwrap()]);
    let sources: Vec<Ipv4Addr> = (1..=5).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let dropped = || dropped_of(&firewall, &client, &server, &sources);
    assert_eq!(dropped(), 1);

    fs::write(&linked.path, "10.0.0.1\n10.0.0.2\n").unwrap();
    firewall.wait_for_word(APPLIED, 1);
    assert_eq!(dropped(), 2, "the target written in place");

    linked.replace("");
    firewall.wait_for_word(APPLIED, 2);
    assert_eq!(dropped(), 0, "the target renamed over");

    // As `ln -sf` does.
    fs::remove_file(&link).unwrap();
    symlink(&other.path, &link).unwrap();
    firewall.wait_for_word(APPLIED, 3);
    assert_eq!(dropped(), 3, "the link made again, to another file");

    // The old target is none of ours any more, the new one is.
    linked.replace("0.0.0.0/0\n");
    other.replace("10.0.0.5\n");
    firewall.wait_for_word(APPLIED, 4);
    assert_eq!(dropped(), 1, "the new target renamed over");
    let (_, stderr) = firewall.stop_after(25);
    assert_eq!(stderr.matches(APPLIED).count(), 4, "{stderr}");
    Ok(())
}

/// As Kubernetes changes what a `ConfigMap` is mounted as: the file is a link into `..data`, which is a link to a folder
/// of one version, and is renamed over; the old folder goes.
fn a_list_takes_effect_when_a_folder_on_its_way_is_swapped() -> Result {
    let (client, server) = cable()?;
    let mount = tempfile::tempdir().unwrap();
    let path = |name: &str| mount.path().join(name);
    let swap = |version: &str, content: &str| {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("list.txt"), content).unwrap();
        symlink(version, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    swap("..1", "10.0.0.1\n");
    symlink("..data/list.txt", path("list.txt")).unwrap();
    let firewall = Firewall::on(&server, &["--block-file", path("list.txt").to_str().unwrap()]);
    let sources: Vec<Ipv4Addr> = (1..=5).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let dropped = || dropped_of(&firewall, &client, &server, &sources);
    assert_eq!(dropped(), 1);

    swap("..2", "10.0.0.1\n10.0.0.2\n");
    fs::remove_dir_all(path("..1")).unwrap();
    firewall.wait_for_word(APPLIED, 1);
    assert_eq!(dropped(), 2, "swapped");

    swap("..3", "10.0.0.0/29\n");
    fs::remove_dir_all(path("..2")).unwrap();
    firewall.wait_for_word(APPLIED, 2);
    assert_eq!(dropped(), 5, "swapped again");
    let (_, stderr) = firewall.stop_after(15);
    assert_eq!(stderr.matches(APPLIED).count(), 2, "{stderr}");
    Ok(())
}

fn a_broken_list_leaves_the_old_one_in_force_and_is_named_with_its_line() -> Result {
    let (client, server) = cable()?;
    let list = ListFile::new("10.0.0.1\n");
    let firewall = Firewall::on(&server, &["--block-file", list.arg(), "--max-entries", "100"]);
    let sources: Vec<Ipv4Addr> = (1..=5).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let too_long: String = (0..101).fold(String::new(), |list, last| format!("{list}10.0.0.{last}\n"));
    let broken = [
        (
            "10.0.0.0/29\n# fine so far\nbanana\n".into(),
            format!("{}:3: \"banana\" is no IP address; write 203.0.113.7, ", list.arg()),
        ),
        (
            "10.0.0.0/33\n".into(),
            format!("{}:1: /33 is no prefix length of 10.0.0.0; ", list.arg()),
        ),
        (
            too_long,
            "101 prefixes do not fit into tables made for 100; start it with --max-entries 101".to_owned(),
        ),
    ];
    for (content, cause) in broken {
        list.replace(&content);
        firewall.wait_for_word(&format!("error: {REFUSED}{cause}"), 1);
        assert_eq!(dropped_of(&firewall, &client, &server, &sources), 1, "{cause}");
    }
    fs::write(&list.path, b"10.0.0.1\n\xff\xfe\n").unwrap();
    firewall.wait_for_word(&format!("{REFUSED}{}:2: this line is not text (UTF-8)", list.arg()), 1);
    assert_eq!(dropped_of(&firewall, &client, &server, &sources), 1);
    list.replace("10.0.0.7/29\n");
    firewall.wait_for_word(APPLIED, 1);
    assert_eq!(dropped_of(&firewall, &client, &server, &sources), 5);
    let (_, stderr) = firewall.stop();
    let notice = format!(
        "warn: {}:1: 10.0.0.7/29 has bits behind its length, which are ignored",
        list.arg()
    );
    assert!(stderr.contains(&notice), "{stderr}");
    Ok(())
}

fn a_hundred_thousand_entries_are_applied_whole() -> Result {
    let (client, server) = cable()?;
    // Every other address, and prefixes of eight among them: none can be joined with its neighbour.
    let mut content = String::new();
    for index in 0..100_000_u32 {
        let (network, length) = if index % 10 == 0 {
            (0x0b00_0000, 29)
        } else {
            (0x0c00_0000, 32)
        };
        writeln!(content, "{}/{length}", Ipv4Addr::from_bits(network + index * 16)).unwrap();
    }
    let list = ListFile::new(&content);
    let firewall = Firewall::on(&server, &["--block-file", list.arg()]);
    let first = |index: u32| {
        Ipv4Addr::from_bits(
            if index.is_multiple_of(10) {
                0x0b00_0000
            } else {
                0x0c00_0000
            } + index * 16,
        )
    };
    let next = |address: Ipv4Addr, steps: u32| Ipv4Addr::from_bits(address.to_bits() + steps);
    let indices = || (0..100_000).step_by(97).chain([99_999]);
    let inside: Vec<_> = indices().map(first).collect();
    // Behind a prefix of eight addresses, and so behind one of them too.
    let outside: Vec<_> = indices().map(|index| next(first(index), 8)).collect();
    assert_eq!(dropped_of(&firewall, &client, &server, &inside), inside.len() as u64);
    assert_eq!(dropped_of(&firewall, &client, &server, &outside), 0);
    let (_, stderr) = firewall.stop();
    assert!(!stderr.contains("warn: ") && !stderr.contains("error: "), "{stderr}");
    Ok(())
}

fn a_list_larger_than_max_entries_is_refused_with_the_mend() -> Result {
    let (_client, server) = cable()?;
    let content: String = (0..11).fold(String::new(), |list, last| format!("{list}10.0.0.{last}\n"));
    let list = ListFile::new(&content);
    let refused = finish(on(&server, &["--block-file", list.arg(), "--max-entries", "10"]));
    assert_eq!(
        refused.stderr,
        "error: 11 prefixes do not fit into tables made for 10; start it with --max-entries 11\n"
    );
    assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""));
    assert!(!server.has_xdp()?);
    // The mend mends.
    let mended = on(
        &server,
        &["--block-file", list.arg(), "--max-entries", "11", "--duration", "100ms"],
    );
    assert!(finish(mended).status.success());
    Ok(())
}

fn several_lists_are_one() -> Result {
    let (client, server) = cable()?;
    let lists = [ListFile::new("10.0.0.1\n"), ListFile::new("10.0.0.2\n10.0.0.3\n")];
    // The second one by a path without folder.
    let mut command = on(
        &server,
        &["--json", "--stats-interval", "100ms", "--block-ip", "10.0.0.5"],
    );
    command.args(["--block-file", lists[0].arg(), "--block-file", "list.txt"]);
    command.current_dir(Path::new(lists[1].arg()).parent().unwrap());
    let firewall = Firewall::start(command);
    let sources: Vec<Ipv4Addr> = (1..=6).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    assert_eq!(dropped_of(&firewall, &client, &server, &sources), 4);
    lists[1].replace("10.0.0.4\n");
    firewall.wait_for_word("the lists changed: 3 prefixes are blocked now", 1);
    assert_eq!(dropped_of(&firewall, &client, &server, &sources), 3);
    lists[0].replace("");
    firewall.wait_for_word("the lists changed: 2 prefixes are blocked now", 1);
    assert_eq!(dropped_of(&firewall, &client, &server, &sources), 2);
    Ok(())
}
