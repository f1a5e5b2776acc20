// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

// cniConfig returns what the CNI configuration follows from. Requests use it too, so it takes
// everything from the turn.
func (d *daemon) cniConfig(t turn) cni.Config {
	cfg := cniWithoutPods(t.cfg.CNI)
	cfg.PodCIDRs, cfg.MTU = t.wanted.Topology.PodCIDRs, t.wanted.Desired.Device.MTU
	return cfg
}

// cniWithoutPods returns where the CNI configuration is on this host, without pod CIDRs.
func cniWithoutPods(c config.CNI) cni.Config {
	return cni.Config{ConfDir: c.ConfDir, BinDir: c.BinDir, PluginSource: c.PluginSource, Bridge: c.Bridge}
}

// applyCNI installs the CNI configuration and plugins once pod CIDRs are known and the host
// can carry pods. It reports whether they are in place, or not wanted.
func (d *daemon) applyCNI(t *turn, claimWait time.Duration, canCarryPods bool) (done bool) {
	switch {
	case !d.cfg.CNI.Enabled:
		return true
	case d.disk.node.Claim.Slot == mesh.None:
		t.note(nil, d.withdrawCNI(cniWithoutPods(t.cfg.CNI)))
		return false
	case len(t.wanted.Topology.PodCIDRs) == 0:
		return false
	case claimWait > 0:
		t.recheckIn(claimWait)
		t.note(nil, d.withdrawCNI(d.cniConfig(*t)))
		return false
	case !canCarryPods:
		return false // a configuration that is there stays: its pods run
	}
	problems, err := d.installCNI(d.cniConfig(*t))
	t.note(problems, err)
	return err == nil
}

// installCNI writes the CNI configuration and the plugins.
func (d *daemon) installCNI(cfg cni.Config) ([]mesh.Problem, error) {
	// Pods start as soon as containerd sees the file, and their addresses can't change then.
	if err := d.saveReady(); err != nil {
		return nil, err
	}
	observed, err := cni.Observe(cfg)
	if err != nil {
		return nil, fmt.Errorf("observe CNI: %w", err)
	}
	problems := cni.Problems(cfg, observed)
	for i := range problems {
		problems[i].Node = d.cfg.Node.Name
	}
	changes, err := cni.Plan(cfg, observed)
	if err = errors.Join(err, d.services.ApplyCNI(changes)); err != nil {
		return problems, fmt.Errorf("install CNI configuration: %w", explainReadOnly(err, directories(changes)...))
	}
	return problems, nil
}

// leaveSlot lets no more pod get an address of the claimed slot, before this node claims
// another one: these addresses are another node's then. The bridge has one, too.
func (d *daemon) leaveSlot(ctx context.Context) error {
	if !d.cfg.CNI.Enabled || d.disk.node.Claim.Slot == mesh.None {
		return nil
	}
	err := d.withdrawCNI(cniWithoutPods(d.cfg.CNI))
	d.bridgeIsStale = d.kernel.RemoveBridge(ctx) != nil // then the turn tries again
	return err
}

// removeStaleBridge removes a bridge that leaveSlot could not remove. Its route leads to the
// former pod CIDR, which is another node's, and a pod that starts before keeps the bridge.
func (d *daemon) removeStaleBridge(ctx context.Context) error {
	if !d.bridgeIsStale {
		return nil
	}
	if err := d.kernel.RemoveBridge(ctx); err != nil {
		return err
	}
	d.bridgeIsStale = false
	return nil
}

// withdrawCNI removes a CNI configuration whose pod CIDRs this node no longer claims, so that
// no pod gets an address from them.
func (d *daemon) withdrawCNI(cfg cni.Config) error {
	observed, err := cni.Observe(cfg)
	if err != nil {
		return fmt.Errorf("observe CNI: %w", err)
	}
	changes, err := cni.PlanWithdrawal(cfg, observed)
	if err != nil || len(changes) == 0 {
		return err
	}
	return d.services.ApplyCNI(changes)
}
