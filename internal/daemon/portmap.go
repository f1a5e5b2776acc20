// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/state"
)

// runPortMapper asks this host's router for the mappings that the loop wants.
func (d *daemon) runPortMapper(ctx context.Context, ready func()) error {
	known, err := state.LoadPortMappings(d.opt.StateDir)
	if err != nil {
		d.log.Warn("port mappings of the last start are not known", "err", err)
	}
	m := portmap.Start(ctx, portmap.Options{
		Known:  known,
		Save:   func(all []portmap.Mapping) error { return state.SavePortMappings(d.opt.StateDir, all) },
		Random: rand.Reader,
		Logger: d.log.Logger,
	})
	d.ports = m
	ready()
	m.Wait()
	return nil
}

// wantMappings says which ports this host's router should map.
func (d *daemon) wantMappings(in node.Input) {
	t := in.WantedMappings()
	d.ports.Want(portmap.Target{Gateway: t.Gateway, Source: t.Source, Ports: t.Ports})
}

// readMappings returns what the router maps, as this node decides by it.
func (d *daemon) readMappings() []node.PortMapping {
	var all []node.PortMapping
	for _, m := range d.ports.Mappings() {
		all = append(all, node.PortMapping{Port: m.Internal.Port(), External: m.External})
	}
	return all
}

// mappingStatus returns what a person sees of the mappings.
func (d *daemon) mappingStatus() []control.PortMapping {
	if d.ports == nil {
		return nil // its task has not started yet
	}
	var all []control.PortMapping
	for _, m := range d.ports.Mappings() {
		all = append(all, control.PortMapping{
			Protocol: string(m.Protocol), Router: m.Gateway, Port: m.Internal.Port(), External: m.External,
			Public: mesh.IsPublic(m.External.Addr()), Permanent: m.Permanent,
		})
	}
	return all
}

// removePortMappings removes what routers map to this host, and returns what it removed, one
// line each. What a router still has, and does not forget by itself, is an error, and is
// tried again the next time.
func removePortMappings(ctx context.Context, stateDir string) (lines []string, err error) {
	all, err := state.LoadPortMappings(stateDir)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	removed, err := portmap.Remove(ctx, all)
	for _, m := range removed {
		lines = append(lines, fmt.Sprintf("delete port mapping of %v to %v on the router %v", m.External, m.Internal, m.Gateway))
	}
	if err != nil {
		return lines, err
	}
	return lines, state.SavePortMappings(stateDir, nil)
}
