"""Small worlds that tests begin with, by one name each.

project    folders with videos, labels, results and weight files
run        plans of inferences and their run directories, worked on without networks
training   plans of trainings, by hand; what a training leaves
launch     launches without a scheduler: their folders as they lie after jobs have done this or that
"""
