"""What drugs do: prior, dose-response curves, effects, programmes, and the generator that maps features to interventions."""
