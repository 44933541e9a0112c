//! The way from a trace to its images and what becomes of them: built on one thread, opened on several.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    disk::{Fate, Image},
    double::Double,
    legal::{Marker, Model, Walk, of_member},
    member::dir_name,
    recover::{Entries, Outcome, Recoverer},
    trace::{Found, Inode, Op, ROOT, Trace},
    verdict::{self, Point, Verdict},
};

/// Images that wait to be opened.
const WAITING_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    /// Points looked at, of a hundred.
    pub share: u8,
    pub workers: usize,
    /// What goes wrong on purpose.
    pub double: Option<Double>,
}

/// Where an image came from first.
#[derive(Debug, Clone, Copy)]
struct Origin {
    model: Model,
    root: Inode,
    at: usize,
    number: usize,
}

#[derive(Default)]
pub struct Enumeration {
    pub built: usize,
    pub unique: usize,
    pub points: Vec<Point>,
    pub markers: BTreeMap<Model, BTreeMap<Marker, u64>>,
    pub verdict: Verdict,
    /// Building and opening.
    pub took: Duration,
    /// Of all images.
    pub entries: Entries,
    pub outcomes: Vec<Outcome>,
    origins: Vec<Origin>,
}

/// Builds, opens and judges the images of a run, in directories below `scratch`. `entries` are those that the run found
/// in its store.
pub fn run(trace: &Trace, plan: &Plan, scratch: &Path, entries: Entries) -> Result<Enumeration> {
    let began = Instant::now();
    let mut found = Enumeration::default();
    let outcomes = Mutex::new(BTreeMap::new());
    let failure = Mutex::new(None);
    let mut last = None;
    let recoverers = (0..plan.workers.max(1)).map(|worker| Recoverer::new(&scratch.join(format!("image-{worker}"))));
    let recoverers = recoverers.collect::<Result<Vec<_>>>()?;
    let (sender, receiver) = mpsc::sync_channel::<(usize, Image)>(WAITING_MAX);
    let receiver = Mutex::new(receiver);
    let receiver = &receiver;
    thread::scope(|scope| {
        for recoverer in recoverers {
            let (entries, outcomes, failure) = (&entries, &outcomes, &failure);
            scope.spawn(move || {
                loop {
                    let next = receiver.lock().recv();
                    let Ok((number, image)) = next else { return };
                    match recoverer.recover(&image, entries) {
                        Ok(mut outcome) => {
                            plan.double.inspect(|double| double.change_outcome(&mut outcome));
                            outcomes.lock().insert(number, outcome);
                        }
                        Err(error) => drop(failure.lock().replace(error)),
                    }
                }
            });
        }
        last = found.build(trace, plan, &sender);
        // The workers end with the channel.
        drop(sender);
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    found.took = began.elapsed();
    let outcomes: Vec<Outcome> = outcomes.into_inner().into_values().collect();
    anyhow::ensure!(outcomes.len() == found.unique, "some images were not opened");
    let last = last.ok_or_else(|| anyhow!("there were no images"))?;
    let reference = scratch.join("reference");
    found.verdict = verdict::judge(trace, &found.points, &outcomes, &entries, last, &reference)?;
    (found.entries, found.outcomes) = (entries, outcomes);
    Ok(found)
}

/// The members' directories, in their order.
fn roots(trace: &Trace) -> Vec<Inode> {
    let root_of = |member: usize| {
        trace.found.iter().find_map(|found| match found {
            Found::Dir { slot, dir } if slot.dir == ROOT && *slot.name == *dir_name(member) => Some(*dir),
            _ => None,
        })
    };
    (0..).map_while(root_of).collect()
}

impl Enumeration {
    /// Sends each image once; gives the number of the one that the run ended with.
    fn build(&mut self, trace: &Trace, plan: &Plan, images: &mpsc::SyncSender<(usize, Image)>) -> Option<usize> {
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        let mut last = None;
        for (member, root) in roots(trace).into_iter().enumerate() {
            let own = of_member(trace, root);
            for model in [Model::Ordered, Model::Weak] {
                let mut walk = Walk::new(trace, model, root, plan.seed);
                let mut random = StdRng::seed_from_u64(plan.seed);
                for (i, &at) in own.iter().enumerate() {
                    walk.pass(at);
                    let until = own.get(i + 1).copied().unwrap_or(trace.ops.len());
                    let is_end = i + 1 == own.len();
                    let mut point = Point { member, at, until, images: BTreeSet::new() };
                    if is_end || random.random_range(0..100) < share_of(&trace.ops[at], plan.share) {
                        let mut number = 0;
                        walk.images(at, |image, markers| {
                            self.built += 1;
                            let new = numbers.len();
                            let id = *numbers.entry(image.hash()).or_insert(new);
                            if id == new {
                                self.origins.push(Origin { model, root, at, number });
                                let counts = self.markers.entry(model).or_default();
                                markers.into_iter().for_each(|marker| *counts.entry(marker).or_default() += 1);
                                if is_end && number == 0 {
                                    last = last.or(Some(id));
                                }
                                // Who does not take it has failed, and says why.
                                let _ = images.send((id, image));
                            } else if is_end && number == 0 {
                                last = last.or(Some(id));
                            }
                            point.images.insert(id);
                            number += 1;
                        });
                    }
                    self.points.push(point);
                }
            }
        }
        self.unique = numbers.len();
        last
    }

    /// Where an image was taken first.
    pub fn position(&self, image: usize) -> Option<usize> {
        self.origins.get(image).map(|origin| origin.at)
    }

    /// An image again.
    pub fn image(&self, trace: &Trace, plan: &Plan, image: usize) -> Result<Image> {
        let origin = self.origins.get(image).context("there is no such image")?;
        self.walk_to(trace, plan, origin).image(origin.at, origin.number).map(|(image, _)| image)
    }

    fn walk_to<'a>(&self, trace: &'a Trace, plan: &Plan, origin: &Origin) -> Walk<'a> {
        let mut walk = Walk::new(trace, origin.model, origin.root, plan.seed);
        of_member(trace, origin.root).into_iter().take_while(|at| *at <= origin.at).for_each(|at| walk.pass(at));
        walk
    }

    /// What was pending where an image was taken, and what became of it.
    pub fn describe(&self, trace: &Trace, plan: &Plan, image: usize) -> String {
        let Some(origin) = self.origins.get(image) else { return "    (no such image)".into() };
        let walk = self.walk_to(trace, plan, origin);
        let Ok((_, fates)) = walk.image(origin.at, origin.number) else { return "    (no such image)".into() };
        let mut lines = vec![format!("    image {image}, {:?}, crash behind operation {}", origin.model, origin.at)];
        lines.extend(
            fates.iter().map(|(at, fate)| format!("      {at} {} {}", fate_name(fate), op_name(&trace.ops[*at]))),
        );
        lines.join("\n")
    }
}

/// Changes of names are few, and more is at stake. A flush that begins is always looked at: its entries are in the log
/// now, and the next image may have them in its store only.
fn share_of(op: &Op, share: u8) -> u8 {
    match op {
        Op::Create { slot, .. } if slot.name.ends_with(".sst") => 100,
        Op::Write { .. } | Op::Sync { .. } => share,
        _ => share.saturating_mul(5),
    }
}

fn fate_name(fate: &Fate) -> String {
    match fate {
        Fate::Lost => "lost ".into(),
        Fate::Done => "done ".into(),
        Fate::Zeros => "zeros".into(),
        Fate::Torn(kept) => format!("torn {kept:?}"),
    }
}

fn op_name(op: &Op) -> String {
    match op {
        Op::Write { file, offset, data, extends } => {
            let end = offset + data.len() as u64;
            format!("write to file {file}, {offset}..{end}{}", if *extends { ", behind its end" } else { "" })
        }
        op => format!("{op:?}"),
    }
}
