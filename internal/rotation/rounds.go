// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// Node is another node, as its records show it.
type Node struct {
	ID      mesh.ID
	Name    string
	Alive   bool
	HasKey  bool              // its path key is known
	Secrets []mesh.SecretHash // empty if its version does not say
}

// Step is what is to be done next.
type Step struct {
	Round Round
	// Begin means that there is no new secret yet: this node makes it, and accepts it first.
	Begin bool
	Send  []Node // who has not done the round, in the order of the input
	// Own means that all others have done the round, and this node has not.
	Own      bool
	Old, New Secret // not set if Begin is
}

// Order returns the step's order.
func (s Step) Order() Order {
	o := Order{Round: s.Round, Old: Hash(s.Old), New: Hash(s.New)}
	if s.Round == Accept {
		o.Secret = s.New
	}
	return o
}

// Next returns the next step. Its error names all nodes on account of which there is none, and what to do there.
func Next(own []Secret, others []Node) (Step, error) {
	step, err := nextOf(own)
	if err != nil {
		return Step{}, err
	}
	var reasons []string
	lacks := make([]Round, len(others))
	ownRound := step.Round
	for i, n := range others {
		if lacks[i], err = step.lacks(n, ownRound); err != nil {
			reasons = append(reasons, err.Error())
		} else {
			step.Round = min(step.Round, lacks[i])
		}
	}
	for i, n := range others {
		if lacks[i] != step.Round {
			continue
		}
		step.Send = append(step.Send, n)
		switch {
		case !n.Alive:
			reasons = append(reasons, fmt.Sprintf("%s is not alive, and would be locked out: start it, or run meshd forget %s if it is gone for good", n.Name, n.Name))
		case !n.HasKey:
			reasons = append(reasons, fmt.Sprintf("the path key of %s is not known yet, to which the order is to be sealed: wait a minute", n.Name))
		}
	}
	if reasons != nil {
		return Step{}, errors.New(strings.Join(reasons, "; "))
	}
	step.Own = step.Round == ownRound && len(step.Send) == 0
	return step, nil
}

// nextOf returns the first round that this node has not done.
func nextOf(own []Secret) (Step, error) {
	switch {
	case len(own) == 1:
		return Step{Round: Accept, Begin: true, Old: own[0]}, nil
	case len(own) == 2 && follows(own[1], own[0]):
		return Step{Round: Use, Old: own[0], New: own[1]}, nil
	case len(own) == 2 && follows(own[0], own[1]):
		return Step{Round: Drop, Old: own[1], New: own[0]}, nil
	}
	return Step{}, fmt.Errorf("this node has the secrets %v, which were not made by meshd secret rotate, so it can't know which one is the new: roll them by hand until one is left", Hashes(own))
}

// never is after all rounds.
const never = Drop + 1

// lacks returns the first round that another node has not done. Which ones can be depends on this node's own.
func (s Step) lacks(n Node, own Round) (Round, error) {
	old := Hash(s.Old)
	if s.Begin {
		if slices.Equal(n.Secrets, []mesh.SecretHash{old}) {
			return Accept, nil
		}
	} else {
		next := Hash(s.New)
		switch {
		case slices.Equal(n.Secrets, []mesh.SecretHash{old}) && own == Use:
			return Accept, nil
		case slices.Equal(n.Secrets, []mesh.SecretHash{old, next}):
			return Use, nil
		case slices.Equal(n.Secrets, []mesh.SecretHash{next, old}):
			return Drop, nil
		case slices.Equal(n.Secrets, []mesh.SecretHash{next}) && own == Drop:
			return never, nil
		}
	}
	switch {
	case len(n.Secrets) == 0:
		return 0, fmt.Errorf("%s does not say which secrets it accepts: upgrade meshd there", n.Name)
	case s.Begin && len(n.Secrets) > 1 && slices.Contains(n.Secrets, old):
		return 0, fmt.Errorf("%s has the secrets %v, so a change is under way: run meshd secret rotate there to finish it", n.Name, n.Secrets)
	}
	return 0, fmt.Errorf("%s has the secrets %v, which don't fit those of this node: copy this node's secret file there, and run systemctl reload meshd", n.Name, n.Secrets)
}
