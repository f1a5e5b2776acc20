// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// adopted are settings in force that are not those of the file, because their
// generation is higher; zero if the file has its way.
func adopted(own, used mesh.Cluster) state.Adopted {
	if used.Generation <= own.Generation {
		return state.Adopted{}
	}
	return state.Adopted{Generation: used.Generation, Mode: used.Mode, Encapsulation: used.Encapsulation, Gateways: used.Gateways}
}

// inForce is the reverse, after a restart.
func inForce(own mesh.Cluster, a state.Adopted) mesh.Cluster {
	if a.Generation > own.Generation && a.Generation <= mesh.MaxGeneration {
		own.Generation, own.Mode, own.Encapsulation, own.Gateways = a.Generation, a.Mode, a.Encapsulation, a.Gateways
	}
	return own
}

// adopt takes over the settings on which the nodes agree. They are kept on disk:
// a node that fell back to its file at a restart would send packets where nobody
// takes them.
func (d *daemon) adopt(used mesh.Cluster) error {
	d.settings = used
	a := adopted(d.cfg.Cluster, used)
	if a == d.disk.node.Adopted {
		return nil
	}
	next := d.disk.node
	next.Adopted = a
	if err := d.disk.saveNode(next); err != nil {
		return err
	}
	d.log.Info("cluster settings", "generation", used.Generation, "mode", used.Mode, "encapsulation", used.Encapsulation, "gateways", used.Gateways)
	return nil
}
