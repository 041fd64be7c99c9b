//! `modax up` and `modax demo`.

use crate::Exit;
use crate::args::{DemoArgs, LayerArgs};
use crate::output::Output;

pub(crate) async fn up(_args: LayerArgs, _output: Output) -> Exit {
    Exit::Failed
}

pub(crate) async fn run(_args: DemoArgs, _output: Output) -> Exit {
    Exit::Failed
}
