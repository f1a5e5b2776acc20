// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// readiness is whether systemd and the state directory have been told.
type readiness struct{ told bool }

// ready tells systemd that k3s may start. The node can carry pods: its overlay address is on
// the device, and the CNI configuration is in place.
func (d *daemon) ready(t *turn, wait time.Duration) {
	if d.readiness.told {
		return
	}
	if wait > 0 {
		t.wakeIn(wait)
		return
	}
	if err := d.promiseReady(); err != nil {
		t.note(nil, err)
		return
	}
	d.readiness.told = true
	topology := t.wanted.Topology
	d.log.Info("ready", "overlay", topology.Addresses, "pods", topology.PodCIDRs, "peers", len(topology.Peers))
	d.services.Notify(sd.SdNotifyReady)
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
