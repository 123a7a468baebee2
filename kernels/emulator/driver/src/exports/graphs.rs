//! Graphs: nodes, executable graphs, updates.

use std::sync::Arc;

use crate::{
    abi::{In, Out, api},
    codes::{Answer, Code, invalid},
    context::{self, Context, current, stream},
    copies::{self, Box3d},
    exports::launching::{Shape, prepare},
    graph::{Exec, Graph, Kind, Mismatch},
    state::{driver, lock},
    work::{KernelCall, Work},
};

/// `CUDA_KERNEL_NODE_PARAMS`, first version.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelParams {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    params: usize,
    extra: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS`, second version.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelParams2 {
    first: KernelParams,
    kernel: usize,
    context: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FillParams {
    to: u64,
    pitch: usize,
    value: u32,
    size: u32,
    width: usize,
    height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostParams {
    function: usize,
    data: usize,
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UpdateResult {
    reason: u32,
    node: usize,
    from: usize,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InstantiateParams {
    flags: u64,
    upload: usize,
    node: usize,
    result: u32,
}

impl KernelParams {
    fn work(&self) -> Answer<Work> {
        let &KernelParams { function, grid, block, shared_bytes, params, extra } = self;
        let context = current()?;
        Ok(Work::Kernel(prepare(&context, function, Shape { grid, block, shared_bytes, params, extra })?))
    }

    /// The parameters of a node. Those of the kernel itself stay where the program had them, so they are not given.
    fn of(call: &KernelCall) -> Answer<KernelParams> {
        let function = driver()?.handle_of(&call.function)?;
        let &KernelCall { grid, block, shared_bytes, .. } = call;
        Ok(KernelParams { function, grid, block, shared_bytes, params: 0, extra: 0 })
    }
}

impl FillParams {
    fn work(&self, context: &Context) -> Answer<Work> {
        let &FillParams { to, pitch, value, size, width, height } = self;
        copies::fill(&context.core, to, pitch, value, size, [width, height])
    }
}

fn graph(handle: usize) -> Answer<Arc<Graph>> {
    driver()?.get::<Graph>(handle)
}

fn exec(handle: usize) -> Answer<Arc<Exec>> {
    driver()?.get::<Exec>(handle)
}

fn context_of(handle: usize) -> Answer<Arc<Context>> {
    if handle == 0 { current() } else { context::find(handle) }
}

fn add(out: Out<usize>, to: usize, after: In<usize>, count: usize, kind: Kind, work: Work) -> Answer {
    out.set(graph(to)?.add(after.get_all(count)?, Some(kind), work)?)
}

fn instantiate(out: Out<usize>, from: usize, flags: u64) -> Answer {
    out.set(Exec::new(&*graph(from)?, flags)?.handle)
}

fn get_params(node: usize) -> Answer<KernelParams> {
    driver()?.graph_of(node)?.with_node(node, |found| match &found.work {
        Work::Kernel(call) => KernelParams::of(call),
        _ => invalid("the node is no kernel"),
    })
}

fn set_params(node: usize, params: &KernelParams) -> Answer {
    let work = params.work()?;
    driver()?.graph_of(node)?.with_node(node, |found| {
        if found.kind != Kind::Kernel {
            return invalid("the node is no kernel");
        }
        found.work = work;
        Ok(())
    })
}

/// Gives a list of handles, or how many there are where the program passes no room.
fn list(found: &[usize], out: Out<usize>, count: Out<usize>) -> Answer {
    if out.is_null() {
        return count.set(found.len());
    }
    let room = count.get()?;
    let mut values = found.to_vec();
    // What there is room for beyond the list is null, as documented.
    values.resize(room, 0);
    out.set_all(&values)?;
    count.set(found.len().min(room))
}

fn update(of: usize, from: usize) -> Answer<Result<(), Mismatch>> {
    exec(of)?.update(&*graph(from)?)
}

fn refused<T>() -> Answer<T> {
    Err(Code::ERROR_GRAPH_EXEC_UPDATE_FAILURE.because("the graph has another shape"))
}

api! {
    fn cuGraphCreate(out: Out<usize>, flags: u32) {
        if flags != 0 {
            return invalid(format!("flags {flags}"));
        }
        out.set(Graph::new()?.handle)
    }
    fn cuGraphDestroy(of: usize) { graph(of)?.destroy() }
    fn cuGraphClone(out: Out<usize>, of: usize) { out.set(graph(of)?.duplicate()?.handle) }
    fn cuGraphNodeFindInClone(out: Out<usize>, node: usize, clone: usize) {
        let clone = graph(clone)?;
        let found = lock(&clone.nodes).iter().find(|found| found.origin == node).map(|found| found.handle);
        out.set(found.ok_or_else(|| Code::ERROR_INVALID_VALUE.because("the graph is no clone of the node's"))?)
    }
    fn cuGraphAddKernelNode(out: Out<usize>, to: usize, after: In<usize>, count: usize, params: In<KernelParams>) {
        add(out, to, after, count, Kind::Kernel, params.get()?.work()?)
    }
    fn cuGraphAddKernelNode_v2(out: Out<usize>, to: usize, after: In<usize>, count: usize, params: In<KernelParams2>) {
        let params = params.get()?;
        if params.first.function == 0 && params.kernel != 0 {
            return invalid("a kernel of a library; pass the function");
        }
        add(out, to, after, count, Kind::Kernel, params.first.work()?)
    }
    fn cuGraphAddMemcpyNode(
        out: Out<usize>, to: usize, after: In<usize>, count: usize, params: In<Box3d>, context: usize,
    ) {
        let work = params.get()?.work(&context_of(context)?.core)?;
        add(out, to, after, count, Kind::Copy, work)
    }
    fn cuGraphAddMemsetNode(
        out: Out<usize>, to: usize, after: In<usize>, count: usize, params: In<FillParams>, context: usize,
    ) {
        let work = params.get()?.work(&*context_of(context)?)?;
        add(out, to, after, count, Kind::Fill, work)
    }
    fn cuGraphAddHostNode(out: Out<usize>, to: usize, after: In<usize>, count: usize, params: In<HostParams>) {
        let HostParams { function, data } = params.get()?;
        if function == 0 {
            return invalid("the function is null");
        }
        add(out, to, after, count, Kind::Host, Work::Call { function, data })
    }
    fn cuGraphAddEmptyNode(out: Out<usize>, to: usize, after: In<usize>, count: usize) {
        add(out, to, after, count, Kind::Empty, Work::Nothing)
    }
    fn cuGraphAddChildGraphNode(out: Out<usize>, to: usize, after: In<usize>, count: usize, child: usize) {
        let work = graph(child)?.sorted()?.into_iter().map(|node| node.work).collect();
        add(out, to, after, count, Kind::Child, Work::Many(work))
    }
    fn cuGraphAddDependencies(of: usize, from: In<usize>, to: In<usize>, count: usize) {
        let of = graph(of)?;
        for (from, to) in from.get_all(count)?.into_iter().zip(to.get_all(count)?) {
            of.with_node(from, |_| Ok(()))?;
            of.with_node(to, |node| {
                node.after.push(from);
                Ok(())
            })?;
        }
        of.sorted().map(drop)
    }
    fn cuGraphGetNodes(of: usize, out: Out<usize>, count: Out<usize>) {
        let found: Vec<usize> = lock(&graph(of)?.nodes).iter().map(|node| node.handle).collect();
        list(&found, out, count)
    }
    fn cuGraphGetRootNodes(of: usize, out: Out<usize>, count: Out<usize>) {
        let graph = graph(of)?;
        let found: Vec<usize> =
            lock(&graph.nodes).iter().filter(|node| node.after.is_empty()).map(|node| node.handle).collect();
        list(&found, out, count)
    }
    fn cuGraphGetEdges(of: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) {
        let graph = graph(of)?;
        let edges: Vec<(usize, usize)> = lock(&graph.nodes)
            .iter()
            .flat_map(|node| node.after.iter().map(|&other| (other, node.handle)).collect::<Vec<_>>())
            .collect();
        let (sources, targets): (Vec<usize>, Vec<usize>) = edges.into_iter().unzip();
        if !from.is_null() {
            let room = count.get()?;
            list(&targets, to, count)?;
            count.set(room)?;
        }
        list(&sources, from, count)
    }
    fn cuGraphNodeGetType(node: usize, kind: Out<u32>) {
        kind.set(driver()?.graph_of(node)?.with_node(node, |found| Ok(found.kind as u32))?)
    }
    fn cuGraphNodeGetDependencies(node: usize, out: Out<usize>, count: Out<usize>) {
        let found = driver()?.graph_of(node)?.with_node(node, |found| Ok(found.after.clone()))?;
        list(&found, out, count)
    }
    fn cuGraphDestroyNode(node: usize) { driver()?.graph_of(node)?.remove(node) }
    fn cuGraphKernelNodeGetParams(node: usize, params: Out<KernelParams>) { params.set(get_params(node)?) }
    fn cuGraphKernelNodeGetParams_v2(node: usize, params: Out<KernelParams2>) {
        params.set(KernelParams2 { first: get_params(node)?, kernel: 0, context: context::current_handle() })
    }
    fn cuGraphKernelNodeSetParams(node: usize, params: In<KernelParams>) { set_params(node, &params.get()?) }
    fn cuGraphKernelNodeSetParams_v2(node: usize, params: In<KernelParams2>) { set_params(node, &params.get()?.first) }

    fn cuGraphInstantiate_v2(out: Out<usize>, from: usize, node: Out<usize>, _log: usize, _length: usize) {
        node.set_if_wanted(0)?;
        instantiate(out, from, 0)
    }
    fn cuGraphInstantiateWithFlags(out: Out<usize>, from: usize, flags: u64) { instantiate(out, from, flags) }
    fn cuGraphInstantiateWithParams(
        out: Out<usize>, from: usize, params: Out<InstantiateParams>,
    ) / cuGraphInstantiateWithParams_ptsz {
        let given = params.get()?;
        instantiate(out, from, given.flags & !2)?;
        params.set(InstantiateParams { node: 0, result: 0, ..given })
    }
    fn cuGraphExecGetFlags(of: usize, flags: Out<u64>) { flags.set(exec(of)?.flags) }
    fn cuGraphExecKernelNodeSetParams(of: usize, node: usize, params: In<KernelParams>) {
        exec(of)?.set(node, params.get()?.work()?)
    }
    fn cuGraphExecKernelNodeSetParams_v2(of: usize, node: usize, params: In<KernelParams2>) {
        exec(of)?.set(node, params.get()?.first.work()?)
    }
    fn cuGraphExecMemcpyNodeSetParams(of: usize, node: usize, params: In<Box3d>, context: usize) {
        exec(of)?.set(node, params.get()?.work(&context_of(context)?.core)?)
    }
    fn cuGraphExecMemsetNodeSetParams(of: usize, node: usize, params: In<FillParams>, context: usize) {
        exec(of)?.set(node, params.get()?.work(&*context_of(context)?)?)
    }
    fn cuGraphExecHostNodeSetParams(of: usize, node: usize, params: In<HostParams>) {
        let HostParams { function, data } = params.get()?;
        exec(of)?.set(node, Work::Call { function, data })
    }
    fn cuGraphExecUpdate(of: usize, from: usize, node: Out<usize>, reason: Out<u32>) {
        match update(of, from)? {
            Ok(()) => reason.set_if_wanted(0),
            Err(mismatch) => {
                node.set_if_wanted(mismatch.node)?;
                reason.set_if_wanted(mismatch.reason)?;
                refused()
            }
        }
    }
    fn cuGraphExecUpdate_v2(of: usize, from: usize, result: Out<UpdateResult>) {
        match update(of, from)? {
            Ok(()) => result.set_if_wanted(UpdateResult { reason: 0, node: 0, from: 0 }),
            Err(mismatch) => {
                result.set_if_wanted(UpdateResult { reason: mismatch.reason, node: mismatch.node, from: 0 })?;
                refused()
            }
        }
    }
    fn cuGraphUpload(of: usize, handle: usize) / cuGraphUpload_ptsz {
        exec(of)?;
        stream(handle).map(drop)
    }
    fn cuGraphLaunch(of: usize, handle: usize) / cuGraphLaunch_ptsz {
        let (context, stream) = stream(handle)?;
        exec(of)?.launch(&context, &stream)
    }
    fn cuGraphExecDestroy(of: usize) {
        exec(of)?;
        driver()?.forget(of);
        Ok(())
    }
}
