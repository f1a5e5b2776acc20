// SPDX-License-Identifier: Apache-2.0

package kilo

import (
	"fmt"

	"github.com/spf13/pflag"
)

// agent has those flags of Kilo's agent that matter to meshd, zero for those that are not set.
type agent struct {
	granularity, encapsulate string
	subnet, topologyLabel    string
	services                 []string
	port, mtu                int
	noCNI                    bool
	unlike                   []string // flags that are set and have no counterpart
}

// Kilo's defaults.
const (
	defaultGranularity   = "location"
	defaultTopologyLabel = "topology.kubernetes.io/region"
	defaultPort          = 51820
)

// readAgent reads the agent's command line, which begins with its first flag.
func readAgent(args []string) (agent, error) {
	var a agent
	f := pflag.NewFlagSet("kg", pflag.ContinueOnError)
	f.StringVar(&a.granularity, "mesh-granularity", "", "")
	f.StringVar(&a.encapsulate, "encapsulate", "", "")
	f.StringVar(&a.subnet, "subnet", "", "")
	f.StringVar(&a.topologyLabel, "topology-label", "", "")
	f.StringSliceVar(&a.services, "service-cidr", nil, "")
	f.IntVar(&a.port, "port", 0, "")
	f.IntVar(&a.mtu, "mtu", 0, "")
	cni := f.Bool("cni", true, "")
	unlike := pflag.NewFlagSet("unlike", pflag.ContinueOnError)
	unlike.String("cni-path", "", "")
	unlike.String("compatibility", "", "")
	unlike.Bool("local", true, "")
	unlike.Bool("prioritise-private-addresses", false, "")
	f.AddFlagSet(unlike)
	f.ParseErrorsWhitelist.UnknownFlags = true // those with which meshd has nothing to do
	if err := f.Parse(args); err != nil {
		return agent{}, fmt.Errorf("flags of the agent: %w", err)
	}
	a.noCNI = !*cni
	unlike.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed {
			a.unlike = append(a.unlike, fmt.Sprintf("--%s=%s", flag.Name, flag.Value))
		}
	})
	return a, nil
}
