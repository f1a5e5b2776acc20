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

// observe reads what meshd has on the host.
func (d *daemon) observe(ctx context.Context, desired netcfg.State) (netcfg.State, error) {
	observed, err := d.kernel.Observe(ctx, desired)
	if err != nil {
		return netcfg.State{}, fmt.Errorf("observe host: %w", err)
	}
	d.memory.Sessions, observed = d.memory.Sessions.Correct(observed, time.Now())
	return observed, nil
}

// change applies the difference between observed and desired, as far as the kernel takes it.
// The turn goes on with what the host has afterwards.
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

// ProblemRefused means that the kernel refuses a route, an entry or a peer.
const ProblemRefused mesh.ProblemKind = "kernel-refuses"

// refusedProblems reports the steps that the kernel refused. They do not make the turn fail:
// another node may have asked for something impossible.
func refusedProblems(node string, steps []*host.RefusedStep) (problems []mesh.Problem) {
	for _, r := range steps {
		problems = append(problems, mesh.Problem{
			Kind: ProblemRefused, Node: node, Text: r.Error(),
			Advice: "if another program on this host has the same route or address, remove it there; otherwise find the node that announces it (meshd status), and change it on that node",
		})
	}
	return problems
}

// startHandshakes starts handshakes with peers that have no session.
func (d *daemon) startHandshakes(ctx context.Context, t *turn, out node.HandshakePlan) (err error) {
	if len(out.Renew) > 0 {
		options := t.options()
		options.Renew = out.Renew
		err = d.change(ctx, t, options)
	}
	for _, a := range out.Initiate {
		if err := d.kernel.InitiateHandshake(ctx, a); err != nil {
			d.log.Debug("start handshake", "addr", a, "err", err)
		}
	}
	return err
}
