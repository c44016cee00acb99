//! Replays all seeds of all targets, every prefix of the short ones too, then changes them at random for a while.
//! Usage: `smoke [SECONDS] [SEED]`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use conncept_fuzz::{TARGETS, Target, seeds};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let seconds = args.next().unwrap_or(10);
    let seed = args.next().unwrap_or_else(|| fastrand::u64(..));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz/ is in the checkout");
    let mut rng = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    for target in TARGETS {
        let corpus: Vec<Vec<u8>> = seeds(root, target).into_iter().map(|(_, seed)| seed).collect();
        if corpus.is_empty() {
            eprintln!("{} has no seeds", target.name);
            return ExitCode::FAILURE;
        }
        let runs = replay(target, &corpus) + mutate(target, &corpus, &mut rng, share(seconds));
        println!("{}: {} seeds, {runs} runs", target.name, corpus.len());
    }
    ExitCode::SUCCESS
}

fn share(seconds: u64) -> Duration {
    Duration::from_secs(seconds) / TARGETS.len() as u32
}

fn replay(target: &Target, corpus: &[Vec<u8>]) -> usize {
    let mut runs = 0;
    for seed in corpus {
        // A seed can be an hour of prefixes; a few hundred show where a parser trips.
        let step = (seed.len() / 512).max(1);
        for end in (0..seed.len()).step_by(step).chain([seed.len()]) {
            (target.run)(&seed[..end]);
            runs += 1;
        }
    }
    runs
}

fn mutate(target: &Target, corpus: &[Vec<u8>], rng: &mut fastrand::Rng, time: Duration) -> usize {
    let started = Instant::now();
    let mut runs = 0;
    while started.elapsed() < time {
        for _ in 0..64 {
            let mut data = corpus[rng.usize(..corpus.len())].clone();
            for _ in 0..rng.usize(1..6) {
                change(&mut data, corpus, rng);
            }
            data.truncate(64 * 1024);
            (target.run)(&data);
            runs += 1;
        }
    }
    runs
}

fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut fastrand::Rng) {
    let at = rng.usize(..=data.len());
    match rng.u8(..6) {
        0 if at < data.len() => data[at] ^= 1 << rng.u8(..8),
        1 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'{', b'"', b'\n'][rng.usize(..8)],
        2 => data.truncate(at),
        3 => data.insert(at, rng.u8(..)),
        4 if at < data.len() => {
            let end = (at + rng.usize(1..16)).min(data.len());
            data.drain(at..end);
        }
        _ => {
            let other = &corpus[rng.usize(..corpus.len())];
            let from = rng.usize(..=other.len());
            let piece = &other[from..(from + rng.usize(..32)).min(other.len())];
            data.splice(at..at, piece.iter().copied());
        }
    }
}
