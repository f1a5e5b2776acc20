// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// start is how far this node is after its start.
func (d *daemon) start(view mesh.View, now time.Time) node.Start {
	return node.Start{Now: now, Started: d.started, Claimed: d.memory.Claimed, Ready: d.node.Ready, View: view}
}

// readiness is whether systemd and the state directory have been told.
type readiness struct{ told bool }

// ready tells systemd that k3s may start, once the node can carry pods: its
// overlay address is on the device, the CNI configuration is in place, and
// first peers or neighbors are set, or there is nobody to wait for.
func (d *daemon) ready(t *turn, c node.Conclusion) error {
	if d.readiness.told || !t.cni || !t.k3s || !c.HasAddresses {
		return nil
	}
	if c.ReadyWait > 0 {
		t.wakeIn(c.ReadyWait)
		return nil
	}
	if err := d.promiseReady(); err != nil {
		return err
	}
	d.readiness.told = true
	d.log.Info("ready", "overlay", t.topology.Addresses, "pods", t.topology.PodCIDRs, "peers", len(t.topology.Peers))
	d.services.Notify(sd.SdNotifyReady)
	return nil
}

// promiseReady writes down that pods may run on the claimed addresses.
func (d *daemon) promiseReady() error {
	if d.node.Ready {
		return nil
	}
	promised := d.node
	promised.Ready = true
	if err := d.dir.SaveNode(promised); err != nil {
		return err
	}
	d.node = promised
	return nil
}
