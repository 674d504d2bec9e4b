//! Plans alone: nothing is computed here.

use super::super::lower::{Net, Op};
use super::super::plan::{Plan, Step, plan};
use super::super::{Fused, Strips};
use super::network::Recipe;
use super::shadow::Shadow;
use super::{SIZES, schedules, tiers};

/// Networks as lowered for kernels of either element.
fn for_all_nets(run: impl Fn(&Recipe, &Net)) {
    for recipe in Recipe::all() {
        let network = recipe.network();
        let mut seen = Vec::new();
        for tier in tiers() {
            let fused = Fused::new(&network, tier).unwrap();
            if !seen.contains(&(tier.element(), tier.numeric_class())) {
                seen.push((tier.element(), tier.numeric_class()));
                run(&recipe, &fused.shared.net);
            }
        }
    }
}

/// Tensors that are alive at the same time lie apart, wherever the shadow saw them.
fn lie_apart(net: &Net, shadow: &Shadow<'_>, plan: &Plan) -> usize {
    let mut at_once = 0;
    for a in 0..net.tensors.len() {
        let Some(life) = shadow.life[a] else { panic!("tensor {a} is never touched") };
        let mut alive = 0;
        for b in 0..net.tensors.len() {
            let Some(other) = shadow.life[b] else { continue };
            // Alive when `a` begins.
            if other.0 <= life.0 && life.0 <= other.1 {
                alive += shadow.extents(b).iter().map(|(start, end)| end - start).sum::<usize>();
            }
            if a >= b || life.1 < other.0 || other.1 < life.0 {
                continue;
            }
            for (start, end) in shadow.extents(a) {
                for (from, to) in shadow.extents(b) {
                    assert!(end <= from || to <= start, "tensors {a} and {b} overlap");
                }
            }
        }
        at_once = at_once.max(alive);
        for (_, end) in shadow.extents(a) {
            assert!(end <= plan.bytes, "tensor {a} leaves the arena");
        }
    }
    at_once
}

#[test]
fn every_number_is_where_it_was_left() {
    for_all_nets(|recipe, net| {
        for &(width, height) in &SIZES[..6] {
            for strips in schedules() {
                let plan = plan(net, width, height, strips);
                let shadow = Shadow::play(net, &plan);
                let at_once = lie_apart(net, &shadow, &plan);
                assert!(plan.bytes >= at_once, "{recipe:?}");
                let again = super::super::plan::plan(net, width, height, strips);
                assert_eq!(plan, again, "another plan of the same");
            }
        }
    });
}

#[test]
fn every_number_is_where_it_was_left_in_a_large_picture() {
    let network = Recipe::odd().network();
    let tier = super::single();
    let net = &Fused::new(&network, tier).unwrap().shared.net;
    for strips in [
        Strips::default(),
        Strips { up_to_stride: 0, ..Strips::default() },
        Strips { up_to_stride: 32, rows: Some(96), ..Strips::default() },
    ] {
        let plan = plan(net, 480, 640, strips);
        let shadow = Shadow::play(net, &plan);
        lie_apart(net, &shadow, &plan);
    }
}

/// No schedule takes more than all tensors side by side. (Strips do not always take less than whole
/// tensors: all those of a group are alive together.)
#[test]
fn the_arena_is_bounded() {
    for_all_nets(|recipe, net| {
        for (width, height) in [(640, 640), (320, 320), (640, 32), (32, 640)] {
            let whole = plan(net, width, height, Strips { up_to_stride: 0, ..Strips::default() });
            let all: usize = net
                .tensors
                .iter()
                .zip(&whole.layouts)
                .flat_map(|(tensor, l)| tensor.planes.iter().map(move |p| (p.lanes, l)))
                .map(|(lanes, l)| ((l.rows + 3) * l.pitch + 2) * lanes * l.size + 256)
                .sum();
            for strips in schedules() {
                let bytes = plan(net, width, height, strips).bytes;
                assert!(bytes <= all, "{recipe:?} {width}x{height} {strips:?}: {bytes} of {all}");
            }
            let usual = plan(net, width, height, Strips::default()).bytes;
            println!("{:?} {width}x{height}: {usual} of {}", recipe.widths, whole.bytes);
        }
    });
}

#[test]
fn large_inputs_are_read_in_parts() {
    for_all_nets(|recipe, net| {
        let plan = plan(net, 640, 640, Strips { up_to_stride: 0, ..Strips::default() });
        let (mut done, mut parts) = (vec![0; net.ops.len()], 0);
        for step in &plan.steps {
            if let Step::Run { op, from, to } = *step {
                assert_eq!(
                    from, done[op],
                    "{recipe:?}: op {op} leaves rows out, or does them twice"
                );
                parts += usize::from(from > 0);
                done[op] = to;
            }
        }
        for (op, done) in net.ops.iter().zip(done).filter(|(_, done)| *done > 0) {
            if let Op::Conv(conv) = op {
                assert_eq!(done, plan.layouts[conv.parts[0].tensor].height, "{recipe:?}");
            }
        }
        assert!(parts > 0, "{recipe:?}");
    });
}
