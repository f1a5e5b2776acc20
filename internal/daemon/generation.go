// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// adoptedSettings returns the settings in force if another node's higher generation replaced
// those of the file, else zero.
func adoptedSettings(file, used mesh.Cluster) state.Adopted {
	if used.Generation <= file.Generation {
		return state.Adopted{}
	}
	return state.Adopted{Generation: used.Generation, Mode: used.Mode, Encapsulation: used.Encapsulation, Gateways: used.Gateways}
}

// settingsInForce returns the settings to start with: those of the file, or adopted ones of a
// higher generation.
func settingsInForce(own mesh.Cluster, a state.Adopted) mesh.Cluster {
	if a.Generation > own.Generation && a.Generation <= mesh.MaxGeneration {
		own.Generation, own.Mode, own.Encapsulation, own.Gateways = a.Generation, a.Mode, a.Encapsulation, a.Gateways
	}
	return own
}

// adopt takes over the settings on which the nodes agree. They are saved to disk: a node that
// returned to its file at a restart would send packets that no node accepts.
func (d *daemon) adopt(used mesh.Cluster) error {
	d.settings = used
	a := adoptedSettings(d.cfg.Cluster, used)
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
