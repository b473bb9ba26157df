//! One step computes the products of the design and no others, over real tokens only.

use unslothify::engine::Mode;
use unslothify::kernels::Cpu;

use super::counting::{Call, Counting};
use super::fixture::Case;

fn count(calls: &[Call], op: &str, rows: usize, matrix: (usize, usize)) -> usize {
    calls.iter().filter(|call| call.op == op && call.rows == rows && call.matrix == matrix).count()
}

#[test]
fn one_step_does_each_product_once_and_none_for_a_frozen_weight() {
    let case = Case::open("texts");
    let (backend, calls) = Counting::new(Cpu::new(Some(1)));
    let mut engine = case.engine(backend);
    let rows = case.rows(0);
    let (tokens, targets) = (rows.ids.len(), rows.target_count());
    assert!(targets < tokens, "the case has rows without a target");
    calls.lock().unwrap().clear();
    engine.forward(&rows.batch(), Mode::Train, targets as f64).unwrap();
    engine.backward(1.0).unwrap();
    let calls = calls.lock().unwrap().clone();

    let c = engine.config().clone();
    let (layers, hidden, inter) = (c.num_hidden_layers, c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let fused = [(q + 2 * kv, hidden), (hidden, q), (2 * inter, hidden), (hidden, inter)];
    let groups = [(12, hidden), (4, q), (8, hidden), (4, inter)];
    for (index, shape) in fused.into_iter().enumerate() {
        assert_eq!(count(&calls, "linear", tokens, shape), layers, "forward of {shape:?}");
        // Nothing below layer 0's q, k and v is trained: their input's gradient may be left out.
        let backward = count(&calls, "linear_backward", tokens, shape);
        assert!(backward == layers || (index == 0 && backward == layers - 1), "backward of {shape:?}: {backward}");
    }
    for group in groups {
        for op in ["lora_down", "lora_up_backward", "lora_gradients"] {
            assert_eq!(count(&calls, op, tokens, group), layers, "{op} of {group:?}");
        }
    }
    for op in ["attention", "attention_backward"] {
        assert_eq!(count(&calls, op, tokens, (0, 0)), layers, "{op}");
    }
    let head = (c.vocab_size, hidden);
    let of_head = |op: &str| {
        calls.iter().filter(|call| call.op == op && call.matrix == head).map(|call| call.rows).sum::<usize>()
    };
    assert_eq!(of_head("linear"), targets, "rows of the head, forward");
    assert_eq!(of_head("linear_backward"), targets, "rows of the head, backward");
    assert_eq!(of_head("embed"), tokens, "rows embedded");

    let known = |call: &&Call| match call.op {
        "linear" | "linear_backward" => call.matrix == head || fused.contains(&call.matrix),
        _ => true,
    };
    assert_eq!(calls.iter().find(|call| !known(call)), None, "a product the design does not have");
    let largest = calls.iter().map(|call| call.rows).max();
    assert_eq!(largest, Some(tokens), "no operation ran over more rows than there are tokens");
}

#[test]
fn evaluation_computes_no_gradient() {
    let case = Case::open("texts");
    let (backend, calls) = Counting::new(Cpu::new(Some(1)));
    let mut engine = case.engine(backend);
    let rows = case.rows(0);
    engine.forward(&rows.batch(), Mode::Evaluate, 1.0).unwrap();
    let calls = calls.lock().unwrap();
    assert!(calls.iter().any(|call| call.op == "linear"));
    assert_eq!(calls.iter().find(|call| call.op.ends_with("backward") || call.op == "lora_gradients"), None);
}
