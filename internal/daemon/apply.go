// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
)

// observe looks at what is ours on the host.
func (d *daemon) observe(ctx context.Context, desired netcfg.State) (netcfg.State, error) {
	observed, err := d.kernel.Observe(ctx, desired)
	if err != nil {
		return netcfg.State{}, fmt.Errorf("observe host: %w", err)
	}
	d.memory.Sessions, observed = d.memory.Sessions.Correct(observed, time.Now())
	return observed, nil
}

// change applies the difference between observed and desired. It does what can be done;
// what the host has afterwards is what there is to go on with.
func (d *daemon) change(ctx context.Context, t *turn, o netcfg.Options) error {
	plan := netcfg.Diff(t.observed, t.wanted.Desired, o)
	if plan.Empty() {
		return nil
	}
	refused, err := host.SplitRefused(d.kernel.Apply(ctx, plan))
	unset, err := host.SplitSysctl(err)
	t.refused = t.refused || len(refused) > 0 || len(unset) > 0
	t.note(refusedProblems(d.cfg.Node.Name, refused), nil)
	observed, observeErr := d.observe(ctx, t.wanted.Desired)
	if err = errors.Join(err, observeErr); err != nil {
		err = fmt.Errorf("apply plan: %w", err)
	}
	observed.SysctlErrs = make(map[string]error, len(unset))
	for _, u := range unset {
		observed.SysctlErrs[u.Key] = u.Unwrap()
	}
	t.observed = observed
	return err
}

// ProblemRefused says that the kernel does not take a route, an entry or a peer.
const ProblemRefused mesh.ProblemKind = "kernel-refuses"

// refusedProblems names the steps that the kernel refused. They are no failure of the turn:
// others may have asked for what can't be.
func refusedProblems(node string, steps []*host.RefusedStep) (problems []mesh.Problem) {
	for _, r := range steps {
		problems = append(problems, mesh.Problem{
			Kind: ProblemRefused, Node: node, Text: r.Error(),
			Advice: "if another program has set up the same here, remove that; else see which node gives this away (meshd status), and change it there",
		})
	}
	return problems
}

// reachOut brings about handshakes with peers that have none.
func (d *daemon) reachOut(ctx context.Context, t *turn, out node.HandshakePlan) (err error) {
	if len(out.Renew) > 0 {
		options := t.options()
		options.Renew = out.Renew
		err = d.change(ctx, t, options)
	}
	for _, a := range out.Initiate {
		if err := d.kernel.InitiateHandshake(ctx, a); err != nil {
			d.log.Debug("speak to peer", "addr", a, "err", err)
		}
	}
	return err
}
